import json

import numpy as np
import pytest
from astropy.table import Table

from benchmarks import decomposition
from benchmarks._harness import main, resumed, turns
from consilience.analysis.decomposition import partial_information
from consilience.studies.runner import Results


def test_a_benchmark_records_its_numbers_and_how_they_were_made(tmp_path, capsys):
    def measure(seed, quick):
        return Results({"speedup": 2.0 + seed, "quick": quick}, {"Seconds": Table({"name": ["ours"], "median": [0.5]})})

    main("example", measure, ["--quick", "--seed", "3", "--out", str(tmp_path / "new")])
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert found["speedup"] == 5.0
    assert found["quick"] is True
    assert found["meta"]["benchmark"] == "example"
    assert found["meta"]["seed"] == 3
    assert "| ours | 0.5 |" in (tmp_path / "new" / "table.md").read_text()
    assert "speedup: 5.0" in capsys.readouterr().out


def test_a_benchmark_that_can_be_stopped_keeps_what_is_done_in_its_folder(tmp_path):
    def measure(seed, quick, out):
        (out / "kept.json").write_text(f"{seed} {quick}")
        return Results({"seed": seed}, {})

    resumed("example", measure, ["--seed", "3", "--out", str(tmp_path)])
    assert (tmp_path / "kept.json").read_text() == "3 False"
    assert json.loads((tmp_path / "results.json").read_text())["seed"] == 3


def test_a_benchmark_needs_a_folder(capsys):
    with pytest.raises(SystemExit) as caught:
        main("example", lambda seed, quick: Results({}, {}), [])
    assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_contenders_take_turns():
    calls = []
    seconds = turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warm=1)
    assert calls == ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert (seconds["a"] >= 0).all()


def test_partial_information_is_compared_part_by_part(monkeypatch):
    def peer(_, program, every, *, threads):
        assert program == "_dit_peer" and all(table.sum() == pytest.approx(1) for table in every.values())
        found = {}
        for name, table in every.items():
            for kind in ("I_min", "BROJA"):
                parts = np.array(partial_information(table, kind))
                found[f"{name} {kind}"] = parts + (0.01 if kind == "BROJA" and name == "random 1" else 0)
        return found | {"seconds": np.array(2.0)}

    monkeypatch.setattr(decomposition, "asked", peer)
    monkeypatch.setattr(decomposition, "peer_python", lambda *_: "python")
    found = decomposition.measure(0, True)
    assert found.numbers["difference_BROJA_random_max"] == pytest.approx(0.01)
    assert found.numbers["broja_short_of_peer_max"] == pytest.approx(0.01)
    assert found.numbers["difference_BROJA_gates_max"] == found.numbers["difference_I_min_random_max"] == 0
    assert len(found.tables["Bits"]) == 4 * 2 * 2

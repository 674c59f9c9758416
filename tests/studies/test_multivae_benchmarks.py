"""What can be said of the benchmarks beside MultiVae without it, which is not installed here."""

import sys

import numpy as np
import pytest
import torch

from benchmarks import _multivae_ours, factors, multivae
from benchmarks._harness import asked, peer_python
from benchmarks._race import Racer
from consilience import simulators

CASE = multivae.Case((6, 5), 8, 2, 16)


def test_our_step_has_the_terms_of_the_peer():
    model, table = _multivae_ours.built(multivae.tables(CASE, 0))
    rows = []
    for decoder in model.decoders.values():
        decoder.register_forward_hook(lambda module, given, found: rows.append(len(found)))
    terms = model.eval().terms(table[:16], table[:16])
    bounds = {f"{kind}/{name}" for kind in ("nll", "self", "cross") for name in ("x1", "x2")}
    divergences = {f"kl/{kind}_{name}" for kind in ("self", "cross", "private") for name in ("x1", "x2")}
    assert set(terms) == bounds | divergences | {"kl/shared"}
    assert rows == [3 * 16, 3 * 16]  # three reconstructions of each modality, as the peer's three bounds
    by_lot = model.train().terms(table[:16], table[:16])
    assert set(by_lot) == set(terms)
    assert rows[2:] == [16, 16]  # in training one of them for each row, which stands for all
    assert model.decoders["x1"].layers[0].in_features == 4
    assert table.parts["x1"].value.dtype == torch.float32


def test_our_step_trains():
    given = multivae.tables(CASE, 0) | {"rates": [1e-2]}
    model, table = _multivae_ours.built(given)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = _multivae_ours.stepper(given, model, table)
    step()
    after = model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in moved} == {"encoders", "decoders", "likelihoods"}


def test_contenders_are_given_standardised_tables():
    given = multivae.tables(CASE, 0)
    for name, cells in (("train_x1", 6), ("train_x2", 5)):
        assert given[name].shape == (multivae.ROWS, cells)
        assert given[name].mean(0) == pytest.approx(np.zeros(cells), abs=1e-5)
        assert given[name].std(0) == pytest.approx(np.ones(cells), abs=1e-5)


def test_a_racer_steps_when_told_to():
    step = "held.append(b'x' * 2**25)"
    code = f"from benchmarks._race import serve; held = []; serve(lambda given: lambda: {step}, {{}})"
    with Racer([sys.executable, "-c", code], 1) as racer:
        for total in (32, 64):
            racer()
            assert racer.memory == pytest.approx(total, abs=4)
    assert racer.process.returncode is not None


def test_a_racer_that_ends_is_an_error():
    with pytest.raises(RuntimeError, match="Expected an answer"):
        Racer([sys.executable, "-c", "raise SystemExit(1)"], 1)


def test_latents_of_another_library_are_probed_as_ours():
    table = simulators.factors(900, seed=0, sizes=(1, 1, 6))
    train, test = table.split(0.8, seed=0)
    rng = np.random.default_rng(0)
    found = {}
    for rows, obs in (("train", train), ("test", test)):
        for block in ("shared", "private_x1", "private_x2"):
            truth = obs.parts[f"true_{block}"].value
            other = obs.parts["true_shared"].value
            found[f"{rows}_mean_{block}"] = np.hstack([truth, 1e-3 * other])
            found[f"{rows}_std_{block}"] = np.tile([0.05, 1.0], (len(obs), 1))
    own, other, own_mean, other_mean = factors.scores(found, train, test, 2, seed=0)
    assert own > 0.95 and own_mean > 0.95
    assert other < 0.1  # a draw of the second latent says nothing of the shared factor
    assert other_mean > 0.9  # its mean does, however small it is
    shuffled = {key: rng.permutation(value) for key, value in found.items()}
    assert factors.scores(shuffled, train, test, 2, seed=0)[0] < 0.1


def test_a_peers_environment_is_made_once(tmp_path, monkeypatch):
    ran = []

    def run(command, check):
        ran.append(command)
        (tmp_path / "x").mkdir(exist_ok=True)

    monkeypatch.setattr("benchmarks._harness.PEERS", tmp_path)
    monkeypatch.setattr("subprocess.run", run)
    first = peer_python("x", "package==1")
    assert [command[-1] for command in ran] == [tmp_path / "x", "package==1"]
    assert peer_python("x", "package==1") == first == tmp_path / "x" / "bin" / "python"
    assert len(ran) == 2


def test_a_peer_is_asked_by_files(monkeypatch):
    def run(command, check, cwd, env):
        *start, given, found = command
        assert start == ["python", "-m", "benchmarks._x"] and check
        assert env["OMP_NUM_THREADS"] == "3" and (cwd / "benchmarks").is_dir()
        with np.load(given) as arrays:
            np.savez(found, double=2 * arrays["x"])

    monkeypatch.setattr("subprocess.run", run)
    found = asked("python", "_x", {"x": np.arange(3)}, threads=3)
    assert found["double"].tolist() == [0, 2, 4]

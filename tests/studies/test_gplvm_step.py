"""The benchmark of a training step times the same bound."""

import json

import pytest

from benchmarks._harness import main
from benchmarks.gplvm_step import Sizes, bound_relative_error, measure


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_is_gpytorchs(seed):
    assert bound_relative_error(Sizes(12, 9, 2, 20, 40), seed) < 1e-4


def test_quick_run_records_its_keys(tmp_path):
    main("gplvm_step", measure, ["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["speedup_per_step"] == found["seconds_per_step_gpytorch"] / found["seconds_per_step"]
    assert found["bound_relative_error"] < 1e-4

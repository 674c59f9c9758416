"""The benchmarks of GPVAE run at tiny sizes and score what they say; the peer of ``gpfa`` is not installed here."""

import json

import numpy as np
import pytest

from benchmarks import gpfa, gpvae_ablations
from benchmarks._harness import main
from consilience.simulators import neural


def test_ablations_record_every_contender(tmp_path):
    main("gpvae_ablations", gpvae_ablations.measure, ["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["angle_error_deg2"] > 0 and found["seconds_per_epoch"] > 0
    table = (tmp_path / "table.md").read_text()
    assert all(name in table for name in gpvae_ablations.CONTENDERS)


def test_bits_per_spike_of_the_truth_and_of_the_mean():
    rng = np.random.default_rng(0)
    rates = np.exp(rng.normal(size=(200, 50, 4)))
    counts = rng.poisson(rates).astype(float)
    mean = rates.mean((0, 1))
    assert gpfa.bits_per_spike(counts, np.broadcast_to(mean, counts.shape), mean) == 0
    # E[λ log λ/λ̄] / (E[λ] log 2) for log-normal rates of unit variance
    assert gpfa.bits_per_spike(counts, rates, mean) == pytest.approx(0.5 / np.log(2), abs=0.05)
    assert gpfa.bits_per_spike(counts, rates[::-1], mean) < 0


def test_neurons_are_predicted_from_others():
    trials = neural(60, seed=0, bins=20, neurons=24).select("spikes")
    hidden = np.arange(24) % 4 == 3
    train, test = trials[:45], trials[45:]
    rates, seconds = gpfa.ours(train, test, hidden, 2, steps=40, batch=15, seed=0)
    mean = train.parts["spikes"].value.mean((0, 1))[hidden]
    assert gpfa.bits_per_spike(test.parts["spikes"].value[..., hidden], rates, mean) > 0.1
    assert seconds > 0

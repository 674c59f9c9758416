"""Modalities of the same influence: factors from errors on validation rows, kept when a run is resumed."""

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.noise import Noise
from consilience.data.scaling import Scaler
from consilience.errors import RequestError, SchemaError
from consilience.train.balance import Balance, balanced, relative_errors

FAMILY = cs.DisentangledVAE(shared=2, hidden=16)
QUICK = {"max_steps": 40, "batch_size": 32, "evaluate_every": 20, "learning_rate": 5e-3, "validation": 0.25}


def table(rows=400):
    """One modality that two latents explain, and one that nothing does."""
    rng = np.random.default_rng(0)
    z, loadings = rng.normal(size=(rows, 2)), np.random.default_rng(1).normal(size=(2, 8))
    values = {"plain": z @ loadings + 0.1 * rng.normal(size=(rows, 8)), "noise": rng.normal(size=(rows, 8))}
    specs = tuple(cs.ModalitySpec(name=name, shape=(8,)) for name in values)
    return cs.Observations.from_arrays(cs.Schema(modalities=specs), values)


def fitted(**options):
    return cs.fit(FAMILY, table(), cs.TrainConfig(**{**QUICK, "balance": Balance(names=("plain", "noise")), **options}))


def test_factors_make_weighted_errors_alike():
    errors = {"a": 0.2, "b": 0.5, "c": 0.9}
    factors = Balance(names=tuple(errors)).factors(errors)
    assert sum(factors.values()) == pytest.approx(3)
    assert np.ptp([factors[name] * errors[name] for name in errors]) < 1e-12
    least = Balance(names=("a", "b"), most=10).factors({"a": 0.0, "b": 1.0})
    assert least["a"] == pytest.approx(10 * least["b"])


def test_errors_are_those_of_mean_draws_over_those_of_the_mean():
    rows = table(60)
    fit = cs.fit(FAMILY, rows, cs.TrainConfig(max_steps=5, validation=0))
    scaled = Scaler.fit(rows).forward(rows).to(dtype=torch.float32)
    noise = Noise(0, scaled.ids, dtype=torch.float32)
    drawn = fit.members[0].condition(scaled).sample(("noise",), noise, 8)["noise"].mean(0)
    truth = scaled.parts["noise"].value
    expected = float((truth - drawn).square().sum() / (truth - truth.mean(0)).square().sum())
    assert relative_errors(fit.members[0], scaled, ["noise"])["noise"] == pytest.approx(expected, rel=1e-4)


def test_what_is_reconstructed_better_weighs_more():
    last = fitted(max_steps=200).history[-1]
    assert last["balance/plain"] > 1.2 > 0.8 > last["balance/noise"]


def test_factors_move_the_weights_of_their_terms_alone():
    weights = {"nll/plain": 1.0, "cross/plain": 2.0, "kl/shared": 1.0, "nll/noise": 1.0}
    assert balanced(weights, {"plain": 1.5}) == {**weights, "nll/plain": 1.5, "cross/plain": 3.0}


def test_a_resumed_run_ends_where_another_does(tmp_path, monkeypatch):
    whole = fitted()
    folder = str(tmp_path / "run")
    step, count = torch.optim.AdamW.step, iter(range(10_000))

    def stopped(*arguments, **options):
        if next(count) == 25:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            fitted(checkpoint=folder, checkpoint_every=20)
    config = cs.TrainConfig(**QUICK, balance=Balance(names=("plain", "noise")), checkpoint_every=20)
    again = cs.fit(FAMILY, table(), config, resume=folder)
    for name, value in whole.members[0].state_dict().items():
        torch.testing.assert_close(again.members[0].state_dict()[name], value)


def test_balance_wants_validation_rows_and_two_modalities():
    with pytest.raises(RequestError, match="Raise validation"):
        fitted(validation=0)
    with pytest.raises(ValueError, match="at least 2"):
        Balance(names=("plain",))
    with pytest.raises((RequestError, SchemaError), match="nothing"):
        fitted(balance=Balance(names=("plain", "nothing")))

"""The training loop: stages, validation, patience, history, the guard, and randomness that stays inside."""

import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

import consilience as cs
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.errors import RequestError, SchemaError, TrainingError
from consilience.models.base import Group
from consilience.train.config import Stage, TrainConfig
from consilience.train.loop import _number, adam, train
from consilience.train.weights import Ramp, objective
from constructors import plain

FAMILY = cs.SharedGPLVM(latent_dim=2, inducing=5, hidden=4)
QUICK = {"max_steps": 12, "batch_size": 16, "evaluate_every": 4, "validation": 0}


def run(config, family=FAMILY, held=None, rows=32):
    table = plain(rows)
    scaler = Scaler.fit(table)
    model = family.build(table.schema, rows, seed=0)
    valid = None if held is None else scaler.forward(held.detached())
    return model, train(model, scaler.forward(table), valid, family, config)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_history_records_every_term_at_every_evaluation():
    _, history = run(TrainConfig(**QUICK), held=plain(10, seed=1))
    assert [(row["stage"], row["step"]) for row in history] == [(0, 4), (0, 8), (0, 12), (1, 4), (1, 6)]
    terms = {"nll/spectrum", "nll/labels", "kl/shared", "kl/inducing", "total"}
    for row in history:
        for side in ("train", "validation"):
            assert {name.removeprefix(f"{side}/") for name in row if name.startswith(side)} == terms
        assert all(math.isfinite(value) for value in row.values())


def test_history_is_written_as_csv_and_the_checkpoint_beside_it(tmp_path):
    folder = tmp_path / "run"
    _, history = run(TrainConfig(**QUICK, checkpoint=str(folder)))
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.safetensors", "history.csv"]


def test_training_leaves_the_global_generators_alone():
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 - it is the global one that must not move
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(TrainConfig(**QUICK))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_the_answer_does_not_depend_on_the_global_generators():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(weights(run(TrainConfig(**QUICK))[0]))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_another_seed_gives_other_weights():
    first, second = (weights(run(TrainConfig(**QUICK, seed=seed))[0]) for seed in (0, 1))
    assert not torch.equal(first["decoders.labels.inducing"], second["decoders.labels.inducing"])


def test_the_best_validated_weights_are_kept():
    """Few rows overfit: the weights are those of the best evaluation, not of the last."""
    held = plain(20, seed=1)
    stages = (Stage(name="train", steps=120),)
    config = TrainConfig(stages=stages, evaluate_every=4, learning_rate=0.05, decay=1.0, validation=0)
    model, history = run(config, held=held, rows=12)
    losses = [row["validation/total"] for row in history]
    assert min(losses) < losses[-1] - 0.1
    valid = Scaler.fit(plain(12)).forward(held.detached()).to(dtype=torch.float32)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_number(config.seed, "train/validation"))
        terms = model.train().terms(valid, valid)
    total, _ = objective(terms, dict.fromkeys(terms, 1.0))
    assert float(total) == pytest.approx(min(losses), rel=1e-5)


def test_validated_totals_are_of_the_last_weights_and_without_fits():
    """A ramp must not make early steps look best; what CLUB's networks learn by is nobody's objective."""
    family = cs.DisentangledVAE(shared=1, private={"spectrum": 1}, hidden=4, club=True)
    ramps = {"kl/*": Ramp(start=0.0, stop=3.0, end=8), "mi/*": Ramp(start=0.0, stop=7.0, end=8)}
    config = TrainConfig(stages=(Stage(name="train", steps=8),), evaluate_every=2, validation=0, weights=ramps)
    _, history = run(config, held=plain(20, seed=1), family=family)
    last = {"nll": 1.0, "self": 1.0, "cross": 1.0, "kl": 3.0, "mi": 7.0, "fit": 0.0}
    for row in history:
        terms = {name: value for name, value in row.items() if name.startswith("validation/") and "total" not in name}
        assert any("/fit/" in name for name in terms)
        assert row["validation/total"] == pytest.approx(
            sum(last[name.split("/")[1]] * value for name, value in terms.items()), rel=1e-5
        )


def test_patience_stops_and_leaves_a_checkpoint(tmp_path):
    config = TrainConfig(
        stages=(Stage(name="train", steps=400),),
        batch_size=16,
        evaluate_every=2,
        learning_rate=1.0,
        patience=3,
        validation=0,
        checkpoint=str(tmp_path / "stopped"),
        checkpoint_every=1000,
    )
    _, history = run(config, held=plain(20, seed=1))
    losses = [row["validation/total"] for row in history]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3
    assert history[-1]["step"] < 400
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()


def test_stages_move_their_own_groups_only():
    def stage(*groups):
        return Stage(name="-".join(groups), steps=5, groups=groups)

    start, _ = run(TrainConfig(**{**QUICK, "stages": (stage("likelihoods"),)}))
    model, history = run(TrainConfig(**{**QUICK, "stages": (stage("likelihoods"), stage("encoder"))}))
    before, after = weights(start), weights(model)
    for name, value in after.items():
        same = torch.equal(value, before[name])
        if name.startswith(("likelihoods", "decoders.labels.kernel", "decoders.labels.inducing")):
            assert same, name
        elif name.startswith("encoder.factors.loadings"):
            assert not same, name
    assert [row["stage"] for row in history] == [0, 0, 1, 1]
    with pytest.raises(RequestError, match=r"Expected groups among \['decoders', .*\] in stage 'body'; got \['body'\]"):
        run(TrainConfig(**{**QUICK, "stages": (stage("body"),)}))


def test_a_stage_without_gradients_moves_only_what_has_a_closed_form():
    first = Stage(name="first", steps=5)
    start, _ = run(TrainConfig(**{**QUICK, "stages": (first,)}))
    model, history = run(TrainConfig(**{**QUICK, "stages": (first, Stage(name="refit", steps=5, gradient=False))}))
    # the variance of a Gaussian likelihood has a closed form too
    learned = {name for name, _ in model.named_parameters() if not name.endswith("log_noise")}
    before, after = weights(start), weights(model)
    for name, value in after.items():
        if name in learned:
            assert torch.equal(value, before[name]), name
    for name in ("decoders.spectrum.q.natural_mean", "decoders.labels.q.across", "prior.mean", "prior.factor"):
        assert not torch.equal(after[name], before[name]), name
    assert history[-1]["stage"] == 1
    assert np.isfinite(history[-1]["train/total"])


def test_stage_weights_stand_over_the_configurations_own():
    quiet = {"kl/shared": 0.0}
    stages = (Stage(name="a", steps=4, weights=quiet), Stage(name="b", steps=4))
    _, history = run(TrainConfig(**{**QUICK, "stages": stages, "weights": {"kl/shared": 1.0}}))
    assert "train/kl/shared" not in history[0]
    assert "train/kl/shared" in history[1]


def test_per_object_posteriors_with_held_out_rows_and_a_stage_without_them():
    family = cs.SharedGPLVM(latent_dim=2, inducing=5, posterior="gaussian")
    stages = (Stage(name="all", steps=4), Stage(name="decoders", steps=4, groups=("decoders",)))
    _, history = run(TrainConfig(**{**QUICK, "stages": stages}), family=family, held=plain(10, seed=1))
    assert not any(name.startswith("validation/") for row in history for name in row)


@pytest.mark.parametrize("weight", [0.0, Ramp(start=0.0, stop=1.0, end=8)])
def test_a_kl_without_weight_trains(weight):
    model, history = run(TrainConfig(**QUICK, weights={"kl/*": weight}))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert math.isfinite(history[-1]["train/total"])


def test_a_tie_of_patterns_is_an_error_before_the_first_step():
    with pytest.raises(SchemaError, match="Expected one longest pattern"):
        run(TrainConfig(**QUICK, weights={"nll/s*": 1.0, "*trum": 2.0, "*ctr*": 1.0, "nll/sp*": 1.0, "*ectrum": 2.0}))


def test_a_term_that_is_not_finite_stops_training_with_the_modality_named(monkeypatch):
    table = plain(32)
    model = FAMILY.build(table.schema, 32, seed=0)
    whole = type(model).terms
    calls = []

    def terms(self, context, target):
        found = whole(self, context, target)
        calls.append(1)
        if len(calls) == 3:
            term = found["nll/labels"]
            found["nll/labels"] = term._replace(value=term.value * torch.nan)
        return found

    monkeypatch.setattr(type(model), "terms", terms)
    with pytest.raises(TrainingError, match=r"Expected a finite term 'nll/labels'; got nan \(nll of 'labels'\)"):
        train(model, Scaler.fit(table).forward(table), None, FAMILY, TrainConfig(**QUICK))
    assert len(calls) == 3


def test_a_value_no_arithmetic_survives_is_a_training_error():
    table = plain(32)
    values = {name: part.value for name, part in table.parts.items()}
    values["labels"] = np.where(np.arange(32)[:, None] == 3, 1e30, values["labels"])
    broken = Scaler.fit(table).forward(Observations.from_arrays(table.schema, values))
    model = FAMILY.build(table.schema, 32, seed=0)
    with pytest.raises(TrainingError, match="Expected .*; got"):
        train(model, broken, None, FAMILY, TrainConfig(**QUICK))


def test_epochs_limit_the_steps():
    _, history = run(TrainConfig(max_steps=1000, max_epochs=3, batch_size=16, validation=0))
    assert [row["step"] for row in history if row["stage"] == 0][-1] == 3 * (32 // 16)


def test_bfloat16_is_a_precision_that_trains():
    model, history = run(TrainConfig(**QUICK, precision="bf16-mixed"))
    assert math.isfinite(history[-1]["train/total"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weight_decay_shrinks_matrices_of_networks_and_nothing_else():
    matrix, offset, other = (nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3,), (2, 2)))
    groups = [
        Group("networks", {"matrix": matrix, "offset": offset}, 0.5, decays=True),
        Group("noise", {"other": other}),
    ]
    optimiser = adam(groups, 0.1, 2.0)
    for parameter in (matrix, offset, other):
        parameter.grad = torch.zeros_like(parameter)
    for options in optimiser.param_groups:
        options["lr"] = 0.1 * options["factor"]
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 3), 1 - 0.1 * 0.5 * 2.0))
    assert bool((offset == 1).all())
    assert bool((other == 1).all())


def test_weight_decay_needs_networks():
    with pytest.raises(RequestError, match="Expected networks in stage 'train' for weight_decay=0.1"):
        run(TrainConfig(**QUICK, weight_decay=0.1))


def test_clipping_bounds_the_step():
    free, _ = run(TrainConfig(**{**QUICK, "max_steps": 1}))
    clipped, _ = run(TrainConfig(**{**QUICK, "max_steps": 1}, clip=1e-12))
    start, _ = run(TrainConfig(**{**QUICK, "max_steps": 1}, learning_rate=1e-30))
    name = "encoder.factors.loadings"

    def moved(model):
        return float((weights(model)[name] - weights(start)[name]).abs().max())

    # Adam divides by its own scale: only a gradient near its epsilon of 1e-8 is held back
    assert moved(clipped) < 0.1 * moved(free)

"""What only VAEFlow does: features computed once, phases, detections, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.data.observations import Modality, Observations, State
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, SchemaError
from constructors import FLOW, catalogue, fitted, survey


def test_features_that_were_computed_once_are_those_of_the_image():
    fit = fitted("vaeflow")
    model, rows = fit.members[0], fit.scaler.forward(survey(40, seed=1)).to(dtype=torch.float32)
    features = model.prepare(rows)
    assert features.schema["image"].shape == (4,) and features.parts["image"].value.shape == (40, 4)
    with torch.no_grad():
        torch.testing.assert_close(model.features(features), model.features(rows))
        blank = replace(rows, parts={**rows.parts, "image": replace_state(rows.parts["image"])})
        torch.testing.assert_close(model.features(model.prepare(blank)), model.features(blank))
    labels = {f"{term}/labels" for term in ("mean", "alone", "nll")}
    assert set(model.terms(features, features)) == {*labels, "nll/bright"}
    assert model.prepare(features) is not rows and model.prepare(features).parts["image"] is features.parts["image"]


def test_features_are_not_taken_for_a_modality_with_as_many_cells():
    """Two latents have four features; the flux has three cells, here with one more."""
    table = survey(60)
    flux = np.concatenate([table.parts["flux"].value] * 2, axis=1)[:, :4]
    spec = ModalitySpec(name="flux", shape=(4,))
    wide = Observations.from_arrays(Schema(modalities=(spec,)), {"flux": flux}, ids=table.ids)
    rows = wide.join(table.select("labels"))
    model = cs.VAEFlow(**FLOW, images=["flux"]).build(rows.schema, len(rows), 0)
    scaled = Scaler.fit(rows).forward(rows).to(dtype=torch.float32)
    features = model.prepare(scaled)
    assert features.parts["flux"].value.shape == scaled.parts["flux"].value.shape
    with torch.no_grad():
        torch.testing.assert_close(model.features(features), model.features(scaled))
    assert "kl/flux" in model.terms(scaled, scaled)
    assert "kl/flux" not in model.terms(features, features)


def replace_state(part):
    unseen = torch.full_like(part.state, State.UNSEEN)
    return Modality(0 * part.value, unseen, None if part.sigma is None else 1 + 0 * part.sigma)


def test_phases_follow_each_other_and_validate_what_they_train():
    config = cs.TrainConfig(max_steps=3, batch_size=16, validation=0.2, evaluate_every=3)
    family = cs.VAEFlow(**FLOW, images=["image"], detected="bright", tuned=True)
    first, second, last = cs.fit(family, survey(), config).history
    assert [row["stage"] for row in (first, second, last)] == [0, 1, 2]
    assert first["validation/total"] == pytest.approx(first["validation/self/image"] + first["validation/kl/image"])
    of_labels = [second[f"validation/{term}/labels"] for term in ("mean", "alone", "nll")]
    assert second["validation/total"] == pytest.approx(sum(of_labels) + second["validation/nll/bright"])
    assert "validation/kl/image" not in second and "validation/kl/image" in last
    assert [phase.name for phase in cs.VAEFlow(**FLOW).phases] == ["flow"]


@pytest.mark.parametrize("tuned", [False, True])
def test_only_tuning_lets_labels_move_the_autoencoder(tuned):
    table = survey()
    model = cs.VAEFlow(**FLOW, images=["image"], tuned=tuned).build(table.schema, len(table), 0).train()
    rows = fitted("vaeflow").scaler.forward(table).to(dtype=torch.float32)
    terms = model.terms(rows, rows)
    (terms["mean/labels"].value.sum() + terms["alone/labels"].value.sum()).backward()
    slopes = [p.grad for name, p in model.named_parameters() if "encoders" in name]
    assert all((slope is not None) == tuned for slope in slopes)


def test_detections_are_probabilities_of_the_flag():
    fit = fitted("vaeflow", steps=300)
    rows = survey(400, seed=2)
    found = fit.summarise(rows.hide("bright", "labels"), ["bright"], statistics=("mean",), n=64)
    said, flag = found.statistics["bright"]["mean"][:, 0], rows.parts["bright"]
    there = flag.seen[:, 0]
    assert said[there & (flag.value[:, 0] == 1)].mean() > said[there & (flag.value[:, 0] == 0)].mean() + 0.1
    # one may be known when the other is asked for, and tells nothing beyond what is read
    given, hidden = (fit.sample(some, ["labels"], n=2) for some in (rows.hide("labels"), rows.hide("labels", "bright")))
    np.testing.assert_array_equal(given.values["labels"], hidden.values["labels"])


def test_what_it_does_not_answer_is_refused():
    fit = fitted("vaeflow")
    rows = survey(4, seed=3)
    for target in ("labels", "flux", "image"):
        with pytest.raises(CapabilityError, match="question that this model answers"):
            fit.sample(rows, [target], n=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "bright"}, "real or positive numbers in 'bright'"),
        ({"detected": "flux"}, "binary modality 'flux'"),
        ({"images": ["labels"]}, "got 'labels'"),
        ({"networks": {"bright": "dense"}, "detected": "bright"}, "got 'bright'"),
        ({"blocks": [["mass"], ["age"]]}, "in one of the blocks"),
        ({"blocks": [["mass", "age"], ["age", "oh"]]}, "in one of the blocks"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(SchemaError, match=message):
        cs.VAEFlow(**FLOW, **changes).build(survey().schema, 10, 0)
    with pytest.raises(SchemaError, match="besides 'labels'"):
        cs.VAEFlow(**FLOW).build(survey().schema.select(["labels"]), 10, 0)


def test_limits_and_error_bars_of_labels_are_refused():
    table, quick = catalogue(), cs.TrainConfig(max_steps=1, validation=0)
    part = table.parts["labels"]
    limits = replace(part, state=np.where(part.value > 3, np.int8(State.BELOW), part.state))
    errors = replace(part, sigma=np.full(part.value.shape, 0.1))
    for wrong, message in ((limits, "no limits in 'labels'"), (errors, "no error bars of 'labels'")):
        with pytest.raises(SchemaError, match=message):
            cs.fit(cs.VAEFlow(**FLOW), replace(table, parts={**table.parts, "labels": wrong}), quick)

"""Every analysis on every family: an answer, or one clear sentence why not, as the table in docs/analyses.md says."""

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import consilience as cs
from consilience import analysis
from consilience.analysis.base import AbstractResult
from consilience.analysis.calibration import Bands
from consilience.blocks.physics import Profile
from consilience.data.observations import Observations
from consilience.errors import RequestError
from consilience.models import deep_start, discs, network_start
from consilience.studies.quasars_hst import observations
from consilience.studies.runner import read_arrays
from constructors import produced, recordings, survey

QUASARS = Path(__file__).parents[3] / "shared" / "data" / "qso_hst_rm31"
PAGE = Path(__file__).parents[2] / "docs" / "analyses.md"
CONFIG = cs.TrainConfig(max_steps=20, batch_size=32, evaluate_every=10, validation=0)
DISC = {"image": Profile()}


def observed(rows, seed):
    return survey(rows, seed).select("image", "flux", "labels")


def pictures(rows, seed):
    return survey(rows, seed).select("image")


def stretches(rows, seed):
    table = recordings(rows, seed)
    values = {name: np.nan_to_num(part.value) for name, part in table.parts.items()}
    return Observations.from_arrays(table.schema, values, ids=table.ids)


SMALL = {"shared": 2, "private": {"image": 1}, "hidden": 8}
FAMILIES = {  # as the page names them
    "SharedGPLVM": (cs.SharedGPLVM(latent_dim=2, inducing=6, hidden=8), observed),
    "GPVAE": (cs.GPVAE(shared=1, private={"motion": 1}, length=3.0), stretches),
    "DisentangledVAE": (cs.DisentangledVAE(**SMALL), observed),
    "… with discs": (cs.DisentangledVAE(**SMALL, physics=DISC), observed),
    "VAE": (cs.VAE(latent_dim=2, hidden=8), pictures),
    "VAEFlow": (cs.VAEFlow(latent_dim=2, hidden=8, layers=2, images=["image"]), observed),
    "FlowMatching": (cs.FlowMatching(width=8, layers=1, heads=2), observed),
    "Regression": (cs.Regression(target="labels", hidden=8), observed),
}
BANDS = Bands(levels=(0.5, 0.9), least=20)


def _next(fit, rows, target):
    """About rows that lack their first modality."""
    lost = [name for name in fit.schema.names if name != target][:1]
    return analysis.what_next(fit, rows[:4].hide(target, *lost), [target], like=rows[:4], n=3)


def _halves(rows):
    middle = round(0.7 * len(rows))
    return rows[:middle], rows[middle:]


def _traversal(fit, rows, _):
    return analysis.traversals(fit, rows, next(iter(fit.members[0].blocks), ""), fit.schema.names[0], steps=3)


ANALYSES = {
    "calibration": lambda fit, rows, target: analysis.calibration(fit, rows, [target], bands=BANDS, n=8),
    "pattern_calibration": lambda fit, rows, target: analysis.pattern_calibration(
        fit, rows, [target], bands=BANDS, n=8
    ),
    "conditional_calibration": lambda fit, rows, target: analysis.conditional_calibration(fit, rows, [target], n=8),
    "joint_calibration": lambda fit, rows, target: analysis.joint_calibration(fit, rows, [target], bands=BANDS, n=8),
    "highest_density": lambda fit, rows, target: analysis.highest_density(fit, rows, [target], bands=BANDS, n=3),
    "recalibration": lambda fit, rows, target: analysis.recalibration(fit, rows, [target], bands=BANDS, n=8),
    "uncertainty": lambda fit, rows, target: analysis.uncertainty(
        replace(fit, members=fit.members * 2), rows[:8], [target], n=4
    ),
    "attribution": lambda fit, rows, target: analysis.attribution(fit, rows, [target], n=4),
    "decomposition": lambda fit, rows, target: analysis.decomposition(fit, rows, [target], bins=2, n=4),
    "what_next": _next,
    "contributions": lambda fit, rows, target: analysis.contributions(fit, *_halves(rows), [target]),
    "block_information": lambda fit, rows, _: analysis.block_information(fit, *_halves(rows)),
    "probes": lambda fit, rows, target: analysis.probes(fit, *_halves(rows), [target]),
    "latents": lambda fit, rows, _: analysis.latents(fit, rows[:20], method="pca"),
    "traversals": _traversal,
    "reconstruction": lambda fit, rows, _: analysis.reconstruction(fit, rows[:12], n=4),
    "imputation": lambda fit, rows, _: analysis.imputation(fit, rows[:24], n=4),
    "outliers": lambda fit, rows, _: analysis.outliers(fit, rows[:10], rows[10:60], rate=0.1, n=4),
    "domain": lambda fit, rows, _: analysis.domain(fit, rows[:25], rows[25:50]),
    "discs": lambda fit, rows, _: analysis.discs(fit, rows[:4], "image"),
}


def promised():
    """Analyses that the page promises of each family."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    start = next(number for number, line in enumerate(lines) if set(FAMILIES) <= set(cells(line)))
    families = cells(lines[start])[1:]
    found = {family: set() for family in families}
    for line in lines[start + 2 : start + 2 + len(ANALYSES)]:
        name, *ticks = cells(line)
        for family, tick in zip(families, ticks, strict=True):
            assert tick in ("✓", "–"), line
            if tick == "✓":
                found[family].add(name.strip("`"))
    return found


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def asked(fit, rows, target):
    """Names of the analyses that answered, and why the others did not."""
    answered, refused = set(), {}
    for question, ask in ANALYSES.items():
        try:
            result = ask(fit, rows, target)
        except RequestError as error:
            refused[question] = str(error)
            continue
        assert isinstance(result, AbstractResult) and len(result.table()) > 0
        answered.add(question)
    assert all(text.startswith("Expected") and "; got" in text for text in refused.values())
    return answered, refused


@pytest.mark.parametrize("name", FAMILIES)
def test_analyses_answer_or_say_why_not(name):
    family, table = FAMILIES[name]
    with ExitStack() as short:
        for module, steps in {network_start: 50, deep_start: 20, discs: 10}.items():
            short.enter_context(mock.patch.object(module, "STEPS", steps))
        fit = cs.fit(family, table(60, seed=0), CONFIG)
    rows, drawn = table(200, seed=1), produced(fit)
    target = "labels" if "labels" in drawn else drawn[0]
    answered, refused = asked(fit, rows, target)
    assert answered == promised()[name], refused


def test_analyses_on_31_real_quasars_answer_or_say_that_these_are_too_few():
    if not QUASARS.is_dir():
        pytest.skip(f"no {QUASARS.name} here")
    rows = observations(read_arrays(QUASARS, QUASARS.name), 32)
    fit = cs.fit(cs.SharedGPLVM(latent_dim=2, inducing=6, hidden=8), rows, CONFIG)
    answered, refused = asked(fit, rows, "labels")
    few = {"recalibration", "contributions", "block_information", "probes", "domain"}  # need more rows
    assert set(refused) == few | {"decomposition", "discs"}, refused
    assert all(re.search(r"\d+ (rows|training|test)|rows of", refused[name]) for name in few)
    assert answered == set(ANALYSES) - set(refused)

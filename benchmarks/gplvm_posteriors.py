"""The posteriors of the training latents side by side: which one predicts new objects?

The same simulated quasars, model and number of steps for each. Train: the seen pixels of training objects, given
themselves and their labels. Test: a fifth of the seen pixels of new objects, given the rest, and their labels, given
the spectra. RMSE of the predictive mean and NLPD per cell; labels in units of each label's spread.

Run with ``python -m benchmarks.gplvm_posteriors [--quick] [--seed N] --out DIR``; seeds N, N + 1, … are averaged.
"""

import os
from dataclasses import dataclass

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import numpy as np
import torch
from astropy.table import Table

from benchmarks._harness import main, say
from consilience.data.observations import Observations
from consilience.models.shared_gplvm import SharedGPLVM
from consilience.predict.fitted import Fitted
from consilience.simulators import quasars
from consilience.studies.runner import Results
from consilience.train.config import TrainConfig
from consilience.workflow.fit import fit

__all__ = ["POSTERIORS", "measure"]

POSTERIORS = ("encoder", "gaussian", "diagonal", "map", "point")
HIDDEN = 0.2  # of the seen pixels of a new object


@dataclass(frozen=True)
class Sizes:
    """Training and new objects, steps with gradients, draws, seeds; latent dimensions, functions, inducing inputs."""

    train: int = 1000
    test: int = 300
    steps: int = 500
    draws: int = 64
    seeds: int = 3
    latent: int = 8
    functions: int = 20
    inducing: int = 60


def measure(seed: int, quick: bool) -> Results:
    """Fit every posterior to the same tables and score it."""
    torch.set_num_threads(2)
    sizes = Sizes(60, 20, 6, 8, 2, 2, 3, 8) if quick else Sizes()
    scores: dict[str, list[list[float]]] = {name: [] for name in POSTERIORS}
    for number in range(seed, seed + sizes.seeds):
        table = quasars(sizes.train + sizes.test, seed=number).select("spectrum", "labels")
        train, test = table[: sizes.train].renumbered(), table[sizes.train :].renumbered()
        for name in POSTERIORS:
            family = SharedGPLVM(
                latent_dim=sizes.latent,
                inducing=sizes.inducing,
                functions={"spectrum": sizes.functions},
                posterior=name,  # type: ignore[arg-type] - one of them
            )
            fitted = fit(family, train, TrainConfig(max_steps=sizes.steps, validation=0, seed=number))
            scores[name].append(_scores(fitted, train[: sizes.test], test, number, sizes.draws))
            say(f"seed {number}, {name}: {np.round(scores[name][-1], 4)}")
    columns = [
        "train RMSE (pixels)", "train NLPD (pixels)", "test RMSE (pixels)", "test NLPD (pixels)",
        "test RMSE (labels)", "test NLPD (labels)",
    ]  # fmt: skip
    rows, numbers = [], {}
    for name in POSTERIORS:
        values = np.array(scores[name])
        rows.append([name, *(f"{m:.4f} ± {s:.4f}" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True))])
        keys = ("rmse_train", "nlpd_train", "rmse_test", "nlpd_test", "rmse_labels", "nlpd_labels")
        numbers |= {f"{key}_{name}": float(value) for key, value in zip(keys, values.mean(0), strict=True)}
    numbers |= {"train_rows": sizes.train, "test_rows": sizes.test, "seeds": sizes.seeds, "steps": sizes.steps}
    title = f"Mean and standard deviation over {sizes.seeds} seeds"
    return Results(numbers, {title: Table(rows=rows, names=["posterior", *columns])})


def _scores(fitted: Fitted, train: Observations, test: Observations, seed: int, draws: int) -> list[float]:
    seen = test.parts["spectrum"].seen
    hide = seen & (np.random.default_rng(seed).random(seen.shape) < HIDDEN)
    given = test.hide_cells({"spectrum": hide})
    found = []
    for obs, context, cells in (
        (train.detached(), train.detached(), train.parts["spectrum"].seen),
        (test, given, hide),
    ):
        guess = fitted.summarise(context, ["spectrum"], statistics=("mean",), n=draws).statistics["spectrum"]["mean"]
        log_p = fitted.cell_log_prob(obs, ["spectrum"], given=context)["spectrum"]
        error = (guess - obs.parts["spectrum"].value)[cells]
        found += [float(np.sqrt(np.mean(error**2))), float(-np.mean(log_p[cells]))]
    spectra, truth = test.hide("labels"), test.parts["labels"].value
    guess = fitted.summarise(spectra, ["labels"], statistics=("mean",), n=draws).statistics["labels"]["mean"]
    log_p = fitted.cell_log_prob(test, ["labels"], given=spectra)["labels"]
    spread = np.nanstd(train.parts["labels"].value, axis=0)
    return [*found, float(np.sqrt(np.nanmean(((guess - truth) / spread) ** 2))), float(-np.nanmean(log_p))]


if __name__ == "__main__":
    main("gplvm_posteriors", measure)

"""Posteriors of new objects per second, and what the encoder's single pass leaves to be gained.

A shared GPLVM trained on simulated quasars infers new ones from their spectra alone: by the encoder's one pass, by few
Gauss-Newton steps after it (``inference_steps``), and by 200. The rate that is reported is that of two steps. The score
is the NLPD of each label; the time is that of mean and standard deviation of every latent, scaling and tiling included,
on two threads.

Run with ``python -m benchmarks.gplvm_encoder [--quick] [--seed N] --out DIR``.
"""

import os
import time
from dataclasses import dataclass, replace

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import numpy as np
import torch
from astropy.table import Table

from benchmarks._harness import main
from consilience.data.observations import Observations
from consilience.models.shared_gplvm import SharedGPLVM
from consilience.predict.fitted import Fitted
from consilience.simulators import quasars
from consilience.studies.runner import Results
from consilience.train.config import TrainConfig
from consilience.workflow.fit import fit

__all__ = ["Sizes", "measure"]

FEW = 2  # steps whose rate is reported
STEPS = (1, FEW, 4)  # 4 is the default
LONG = 200  # steps of the optimisation that the others are compared with


@dataclass(frozen=True)
class Sizes:
    """Training objects, their steps; new objects that are timed, and those of them that are scored."""

    train: int = 20000
    steps: int = 2000
    timed: int = 8192
    scored: int = 1024
    repeats: int = 3
    family: SharedGPLVM = SharedGPLVM(
        latent_dim=10,
        inducing=120,
        private={"labels": 2, "spectrum": 4},
        functions={"spectrum": 24},
        likelihoods={"labels": "heteroscedastic"},
    )


def measure(seed: int, quick: bool) -> Results:
    """Train, then infer the same new objects in each way."""
    torch.set_num_threads(2)
    tiny = SharedGPLVM(latent_dim=2, inducing=8, hidden=8, functions={"spectrum": 3})
    sizes = Sizes(120, 15, 128, 64, 1, tiny) if quick else Sizes()
    table = quasars(sizes.train, seed=seed).select("spectrum", "labels")
    fitted = fit(sizes.family, table, TrainConfig(max_steps=sizes.steps, batch_size=min(256, sizes.train), seed=seed))
    new = quasars(sizes.timed, seed=seed + 1_000_003).select("spectrum", "labels")
    names = [cell.name for cell in table.schema["labels"].cells]
    ways = {"one pass": (fitted, "encoder")}
    ways |= {_name(steps): (_with_steps(fitted, steps), "default") for steps in (*STEPS, LONG)}
    rows, nlpd, rates = [], {}, {}
    for way, (model, method) in ways.items():
        nlpd[way] = _nlpd(model, new[: sizes.scored], method)
        some = new if way != _name(LONG) else new[: sizes.scored]
        rates[way] = len(some) / min(_seconds(model, some.hide("labels"), method) for _ in range(sizes.repeats))
        rows.append([way, round(rates[way], 1), *nlpd[way].tolist()])
    excess = {way: float((found - nlpd[_name(LONG)]).max()) for way, found in nlpd.items()}
    numbers = {
        "posteriors_per_second": rates[_name(FEW)],
        "nlpd_minus_long_max": excess[_name(FEW)],
        "posteriors_per_second_one_pass": rates["one pass"],
        "nlpd_one_pass_minus_long_max": excess["one pass"],
        "train_rows": sizes.train,
        "new_rows": sizes.timed,
        "scored_rows": sizes.scored,
        "pixels": table.schema["spectrum"].size,
    }
    columns = ["inference", "posteriors/s", *(f"nlpd {name}" for name in names)]
    return Results(numbers, {"Posteriors of new objects from spectra alone": Table(rows=rows, names=columns)})


def _name(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def _with_steps(fitted: Fitted, steps: int) -> Fitted:
    """The same model with another number of refinement steps."""
    family = fitted.family.model_copy(update={"inference_steps": steps})
    model = family.build(fitted.schema, int(fitted.provenance["rows"]), 0).eval()
    model.load_state_dict(fitted.members[0].state_dict())
    model.refresh()
    return replace(fitted, members=(model,), family=family)


def _seconds(fitted: Fitted, new: Observations, method: str) -> float:
    begun = time.perf_counter()
    fitted.latent(new, method=method)
    return time.perf_counter() - begun


def _nlpd(fitted: Fitted, new: Observations, method: str) -> np.ndarray:
    """Of each label, in nats per physical unit."""
    found = fitted.cell_log_prob(new, ["labels"], given=new.hide("labels"), method=method)["labels"]
    return -np.nanmean(found, axis=0)


if __name__ == "__main__":
    main("gplvm_encoder", measure)

"""Elephant's GPFA on counts in an NPZ file; run by ``benchmarks/gpfa.py`` in an environment of its own.

``python -m benchmarks._gpfa_peer IN OUT``: IN holds counts ``train`` (N, T, D) and ``test``, ``hidden`` (D,) bool,
``size`` and ``bin_ms``; OUT receives ``rates`` (N, T, hidden) predicted for the hidden neurons of the test trials from
the others, and ``seconds`` of fitting. Square roots of counts, as its authors advise; all settings are its defaults.
"""

import sys
import time
from typing import Any

import numpy as np
from elephant.gpfa import gpfa_core

FLOOR = 1e-3  # of a predicted count


def sequences(counts: np.ndarray) -> np.ndarray:
    """Trials as the library's own records: square roots of counts, (D, T) each."""
    found = np.empty(len(counts), dtype=[("trial_id", int), ("T", int), ("y", object)])
    for row, trial in enumerate(counts):
        found[row] = row, len(trial), np.sqrt(trial).T
    return found


def restricted(params: dict[str, Any], keep: np.ndarray) -> dict[str, Any]:
    """The parameters of some neurons."""
    return {**params, "C": params["C"][keep], "d": params["d"][keep], "R": params["R"][np.ix_(keep, keep)]}


given = np.load(sys.argv[1], allow_pickle=False)
hidden, size = given["hidden"], int(given["size"])
begun = time.perf_counter()
params, _ = gpfa_core.fit(sequences(given["train"]), x_dim=size, bin_width=float(given["bin_ms"]))
seconds = time.perf_counter() - begun
inferred, _ = gpfa_core.exact_inference_with_ll(
    sequences(given["test"][..., ~hidden]), restricted(params, ~hidden), get_ll=False
)
out, noise = params["C"][hidden], np.diag(params["R"])[hidden]
rates = []
for trial in inferred:
    mean = out @ trial["latent_variable"] + params["d"][hidden][:, None]
    variance = np.einsum("dl,lmt,dm->dt", out, trial["Vsm"], out) + noise[:, None]
    rates.append(np.maximum(mean**2 + variance, FLOOR).T)
np.savez(sys.argv[2], rates=np.stack(rates), seconds=seconds)

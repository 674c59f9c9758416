"""sbi's NPE or FMPE; run by ``sbi_c2st`` in an environment of its own.

``python -m benchmarks._sbi_peer IN OUT``: IN holds simulations ``theta`` (N, P) and ``x`` (N, X), observations
``asked`` (M, X), the number of ``draws``, ``method`` ("npe" or "fmpe"), ``seed``, and, where the prior is uniform, its
``bounds``. OUT receives ``draws`` (M, draws, P) and ``seconds`` of the training, with the settings that sbi has.
"""

import sys
import time
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from sbi.inference import FMPE, NPE
from sbi.utils import BoxUniform

Given = Mapping[str, np.ndarray]


def draws_of(given: Given) -> dict[str, np.ndarray]:
    """Draws of the posterior of every observation, and how long the training took."""
    torch.manual_seed(int(given["seed"]))
    theta, x, asked = (torch.as_tensor(given[name], dtype=torch.float32) for name in ("theta", "x", "asked"))
    prior = None  # of parameters without bounds no draw needs to be refused
    if "bounds" in given:
        low, high = given["bounds"]
        prior = BoxUniform(torch.full(theta.shape[1:], float(low)), torch.full(theta.shape[1:], float(high)))
    npe = str(given["method"]) == "npe"
    kind = (
        NPE(prior, density_estimator="nsf", show_progress_bars=False) if npe else FMPE(prior, show_progress_bars=False)
    )
    begun = time.perf_counter()
    estimator = kind.append_simulations(theta, x).train()
    seconds = time.perf_counter() - begun
    posterior = kind.build_posterior(estimator, prior=prior or _Anything(theta.shape[1]))
    count = int(given["draws"])
    found = [posterior.sample((count,), x=one, show_progress_bars=False).numpy() for one in asked]
    return {"draws": np.stack(found), "seconds": np.array(seconds)}


class _Anything(torch.distributions.MultivariateNormal):
    """A prior that allows every value, for a posterior that must have one."""

    def __init__(self, size: int) -> None:
        super().__init__(torch.zeros(size), 1e6 * torch.eye(size))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with np.load(sys.argv[1], allow_pickle=False) as arrays:
        np.savez(sys.argv[2], **draws_of(dict(arrays)))

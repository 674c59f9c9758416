"""Seconds per training step of the shared GPLVM beside GPyTorch's for the same bound.

One modality of D outputs, M inducing inputs, Q latent dimensions, B objects a step, a fifth of the cells missing; the
same ARD squared-exponential kernel, one learned noise variance per output, learned Gaussian latents, float32. Ours is
what the training loop does in a step: the natural-gradient step of every q(u), the terms, the gradient, Adam.
GPyTorch's is its Bayesian GPLVM: one Cholesky factor per output, whitened, everything moved by Adam. They take
turns of a few steps, so that whatever else the machine does slows both.

Run with ``python -m benchmarks.gplvm_step [--quick] [--seed N] --out DIR``.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import numpy as np
import torch
from astropy.table import Table
from torch import Tensor

from benchmarks._harness import main, turns
from benchmarks._peer import PeerGPLVM, PeerLatents, copy_decoder
from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.models.shared_gplvm import SharedGPLVM
from consilience.studies.runner import Results

__all__ = ["Sizes", "bound_relative_error", "make_table", "measure", "our_step", "step_seconds"]


MISSING = 0.2  # share of the cells


@dataclass(frozen=True)
class Sizes:
    """D outputs, M inducing inputs, Q latent dimensions, B objects a step of N; turns, and steps timed in each."""

    outputs: int = 594
    inducing: int = 120
    latent: int = 10
    batch: int = 128
    rows: int = 1024
    turns: int = 6
    streak: int = 5


def step_seconds(sizes: Sizes, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    """Seconds of each timed step of "ours" and "gpytorch", in turns."""
    table = make_table(sizes, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sizes.rows, generator=generator)[: sizes.batch]
    steps = {"ours": our_step(table, sizes, seed, dtype), "gpytorch": _peer_step(table, sizes, seed, dtype)}
    calls = {name: lambda step=step: step(order) for name, step in steps.items()}
    return turns(calls, repeats=sizes.turns, streak=sizes.streak)


def bound_relative_error(sizes: Sizes, seed: int) -> float:
    """|ours - GPyTorch's| / |GPyTorch's| of the bound at the same z, q(u), kernel, noise and constants, float64."""
    dtype = torch.float64
    table = make_table(sizes, seed, dtype)
    model = SharedGPLVM(latent_dim=sizes.latent, inducing=sizes.inducing, kernel="rbf", posterior="point").build(
        table.schema, sizes.rows, seed
    )
    model.to(dtype)
    batch = table[torch.arange(sizes.batch).numpy()]
    generator = torch.Generator().manual_seed(seed)
    gp, likelihood = model.decoders["x"], model.likelihoods["x"]
    with torch.no_grad():
        model.locals.mean.normal_(generator=generator)
        likelihood.log_noise.uniform_(-2, 0, generator=generator)
        gp.kernel.log_lengthscale.uniform_(0.5, 1.0, generator=generator)
        gp.constant.normal_(generator=generator)
        # A q(u) that is no optimum of anything: two damped steps from the prior.
        for _ in range(2):
            model.closed_form_step(batch, batch, sizes.rows / sizes.batch, {}, 0.3)
        terms = model.terms(batch, batch)
        ours = -float(terms["nll/x"].value.mean()) - float(terms["kl/inducing"].value)
        peer = PeerGPLVM(gp.inducing.detach().clone(), sizes.outputs).to(dtype)
        copy_decoder(gp, likelihood, peer)
        z, part = model.locals.mean[batch.index], batch.parts["x"]
        theirs = -float(peer.objective(z, part.value, part.seen, sizes.rows))
    return abs(ours - theirs) / abs(theirs)


def measure(seed: int, quick: bool) -> Results:
    """Time the steps and compare the bounds."""
    torch.set_num_threads(2)
    sizes = Sizes(40, 12, 3, 16, 64, 2, 2) if quick else Sizes()
    seconds = step_seconds(sizes, seed)
    errors = [bound_relative_error(Sizes(30, 20, 3, 40, 60), seed + k) for k in range(3)]
    ours, peer = (float(np.median(seconds[name])) for name in ("ours", "gpytorch"))
    numbers = {
        "speedup_per_step": peer / ours,
        "bound_relative_error": max(errors),
        "seconds_per_step": ours,
        "seconds_per_step_gpytorch": peer,
        "speedup_of_fastest_steps": float(seconds["gpytorch"].min() / seconds["ours"].min()),
        "outputs": sizes.outputs,
        "inducing": sizes.inducing,
        "latent": sizes.latent,
        "batch": sizes.batch,
        "missing_fraction": MISSING,
        "steps_timed": sizes.turns * sizes.streak,
    }
    rows = [[name, float(np.median(values)), float(values.min())] for name, values in seconds.items()]
    return Results(numbers, {"Seconds per training step": Table(rows=rows, names=["method", "median", "fastest"])})


def make_table(sizes: Sizes, seed: int, dtype: torch.dtype = torch.float32) -> Observations:
    """Smooth functions of random latents with noise and gaps, as scaled tensors."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(sizes.rows, sizes.latent, generator=generator)
    w = torch.randn(sizes.latent, sizes.outputs, generator=generator)
    value = torch.tanh(z @ w / sizes.latent**0.5) + 0.3 * torch.randn(sizes.rows, sizes.outputs, generator=generator)
    seen = torch.rand(sizes.rows, sizes.outputs, generator=generator) >= MISSING
    state = torch.where(seen, int(State.MEASURED), int(State.UNSEEN)).to(torch.int8)
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(sizes.outputs,)),))
    obs = Observations.from_arrays(schema, {"x": value.double().numpy()}, state={"x": state.numpy()})
    scaled = obs.to(dtype=dtype)
    part = scaled.parts["x"]
    return Observations(
        schema, {"x": Modality(part.value.nan_to_num(0.0), part.state)}, scaled.ids, scaled.index, scaled.total
    )


def our_step(
    table: Observations, sizes: Sizes, seed: int, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], None]:
    """What the training loop does in a step, as a function of the rows of the batch."""
    family = SharedGPLVM(latent_dim=sizes.latent, inducing=sizes.inducing, kernel="rbf", posterior="diagonal")
    model = family.build(table.schema, sizes.rows, seed).to(dtype)
    with torch.no_grad():
        model.locals.mean.normal_(generator=torch.Generator().manual_seed(seed))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step(rows: Tensor) -> None:
        batch = table[rows.numpy()]
        model.closed_form_step(batch, batch, sizes.rows / sizes.batch, {}, 0.1)
        terms = model.terms(batch, batch)
        total = terms["nll/x"].value.mean() + terms["kl/shared"].value.mean() + terms["kl/inducing"].value
        optimiser.zero_grad()
        total.backward()
        optimiser.step()

    return step


def _peer_step(table: Observations, sizes: Sizes, seed: int, dtype: torch.dtype) -> Callable[[Tensor], None]:
    generator = torch.Generator().manual_seed(seed)
    peer = PeerGPLVM(torch.randn(sizes.inducing, sizes.latent, generator=generator), sizes.outputs).to(dtype)
    mean = torch.randn(sizes.rows, sizes.latent, generator=generator)
    latents = PeerLatents(mean, torch.full_like(mean, -1.0)).to(dtype)
    optimiser = torch.optim.Adam([*peer.parameters(), *latents.parameters()], lr=1e-2)
    part = table.parts["x"]

    def step(rows: Tensor) -> None:
        z, divergence = latents(rows)
        total = peer.objective(z, part.value[rows], part.seen[rows], sizes.rows) + divergence
        optimiser.zero_grad()
        total.backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    main("gplvm_step", measure)

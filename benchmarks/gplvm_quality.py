"""Held-out density against training time of the shared GPLVM and of GPyTorch's for the same model and start.

Simulated quasar spectra with gaps and error bars, a tenth of the seen cells kept from both. Same kernel, inducing
inputs, q(u), constants, noise and q(z) at the start (a factor analysis), batches of one size, a cosine decay, float32,
two threads. The peer has a mean and standard deviations of every object's latent and moves everything by Adam, at each
of three rates; the target is the best NLPD that the best of them ever reaches within its whole budget. Ours reads the
latents with an encoder and Gauss-Newton steps, whose seconds for all objects are added to every point of its curve.
Other evaluations are not timed.

Run with ``python -m benchmarks.gplvm_quality [--quick] [--seed N] --out DIR``; seeds N, N + 1, … are raced.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import numpy as np
import torch
from astropy.table import Table
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks._harness import main
from benchmarks._peer import PeerGPLVM, PeerLatents, copy_decoder
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.posteriors import GaussianLatent
from consilience.data.observations import Modality, Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.models.shared_gplvm import SharedGPLVM
from consilience.plots.style import COLOURS, style
from consilience.simulators import quasars
from consilience.studies.runner import Results

__all__ = ["Curve", "Sizes", "measure", "race"]

RATES = (1e-3, 3e-3, 1e-2)  # of the peer's Adam
DRAWS = 16  # of a latent position behind a predictive density
DECAY = 0.02  # of the cosine that both follow
HELD_OUT = 0.1  # of the seen cells

Moments = Callable[[Tensor], tuple[Tensor, Tensor]]
Step = Callable[[Tensor, float], None]
Evaluate = Callable[[], tuple[float, float]]  # NLPD, and seconds of inference that belong to it


@dataclass(frozen=True)
class Sizes:
    """N objects, every ``thin``-th of 590 pixels, M inducing inputs, Q latents, B a step; steps of both; seeds.

    ``ours`` counts steps with gradients, ``refit`` those without.
    """

    rows: int = 1000
    thin: int = 3
    inducing: int = 64
    latent: int = 6
    batch: int = 128
    ours: int = 150
    refit: int = 150
    peer: int = 3000
    seeds: int = 3


@dataclass(frozen=True)
class Curve:
    """Held-out NLPD in nats per cell after so many seconds of training."""

    seconds: np.ndarray
    nlpd: np.ndarray

    def first(self, level: float) -> float:
        """Seconds after which the NLPD is at most ``level``; infinite if it never is."""
        there = self.nlpd <= level
        return float(self.seconds[there.argmax()]) if there.any() else float("inf")


def race(sizes: Sizes, seed: int) -> dict[str, Curve]:
    """The curves of "ours" and of the peer at each of its rates, from one start."""
    table, held = _table(sizes, seed)
    found = {"ours": _ours(table, held, sizes, seed)}
    return found | {f"gpytorch {rate:g}": _peer(table, held, sizes, seed, rate) for rate in RATES}


def measure(seed: int, quick: bool) -> Results:
    """Race several seeds; the speed-up is the median over seeds."""
    torch.set_num_threads(2)
    sizes = Sizes(60, 60, 8, 2, 32, 12, 6, 30, 2) if quick else Sizes()
    curves = {seed + k: race(sizes, seed + k) for k in range(sizes.seeds)}
    rows, speedup, difference = [], [], []
    for number, found in curves.items():
        ours = found["ours"]
        name = min((name for name in found if name != "ours"), key=lambda name: found[name].nlpd.min())
        peer = found[name]
        target = float(peer.nlpd.min())
        speedup.append(peer.first(target) / ours.first(target))
        difference.append(float(ours.nlpd[-1]) - target)
        rows.append(
            [number, name, target, peer.first(target), float(peer.seconds[-1]), ours.first(target)]
            + [float(ours.seconds[-1]), float(ours.nlpd[-1]), speedup[-1]]
        )
    names = ["seed", "best peer", "its best NLPD", "its seconds there", "its seconds in all", "our seconds there"]
    table = Table(rows=rows, names=[*names, "our seconds in all", "our last NLPD", "speed-up"])
    numbers = {
        "speedup_to_equal_nlpd": float(np.median(speedup)),
        "speedup_to_equal_nlpd_min": float(np.min(speedup)),
        "nlpd_difference": float(np.mean(difference)),
        "nlpd_difference_max": float(np.max(difference)),
        "peer_seconds_max": max(
            float(found[name].seconds[-1]) for found in curves.values() for name in found if name != "ours"
        ),
        "objects": sizes.rows,
        "outputs": len(range(0, 590, sizes.thin)),
        "inducing": sizes.inducing,
        "latent": sizes.latent,
        "batch": sizes.batch,
        "seeds": sizes.seeds,
        "steps_ours": sizes.ours + sizes.refit,
        "steps_peer": sizes.peer,
    }
    return Results(numbers, {"Race to the peer's best held-out NLPD": table}, {"race": _figure(curves)})


def _table(sizes: Sizes, seed: int) -> tuple[Observations, Tensor]:
    """Scaled spectra without the held-out cells, and which cells those are, (N, D)."""
    spectra = quasars(sizes.rows, seed=seed).parts["spectrum"]
    thin = slice(None, None, sizes.thin)
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(len(range(590)[thin]),), scale="robust"),))
    value, sigma = {"x": spectra.value[:, thin]}, {"x": spectra.sigma[:, thin]}
    obs = Observations.from_arrays(schema, value, sigma=sigma)
    held = obs.parts["x"].seen & (np.random.default_rng(seed).random(obs.parts["x"].value.shape) < HELD_OUT)
    scaled = Scaler.fit(obs.hide_cells({"x": held})).forward(obs).to()
    part = scaled.parts["x"]
    return Observations(schema, {"x": part}, scaled.ids, scaled.index, scaled.total), torch.as_tensor(held)


def _without(table: Observations, held: Tensor) -> Observations:
    """The training cells alone; held-out ones keep their values, which nothing reads where the state is unseen."""
    part = table.parts["x"]
    state = torch.where(held, torch.zeros_like(part.state), part.state)
    return Observations(
        table.schema, {"x": Modality(part.value, state, part.sigma)}, table.ids, table.index, table.total
    )


def _started(train: Observations, sizes: Sizes, seed: int, posterior: Literal["encoder", "diagonal"]) -> nn.Module:
    family = SharedGPLVM(latent_dim=sizes.latent, inducing=sizes.inducing, posterior=posterior)
    model = family.build(train.schema, sizes.rows, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.start(train)
    return model


def _ours(table: Observations, held: Tensor, sizes: Sizes, seed: int) -> Curve:
    train = _without(table, held)
    model = _started(train, sizes, seed, "encoder")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step(rows: Tensor, decay: float) -> None:
        batch = train[rows.numpy()]
        model.closed_form_step(batch, batch, sizes.rows / len(rows), {}, 0.1 * decay)
        if model.training:
            terms = model.terms(batch, batch)
            total = terms["nll/x"].value.mean() + terms["kl/shared"].value.mean() + terms["kl/inducing"].value
            optimiser.zero_grad()
            total.backward()
            optimiser.param_groups[0]["lr"] = 1e-2 * decay
            optimiser.step()

    def evaluate() -> tuple[float, float]:
        begun = time.perf_counter()
        q = model.condition(train).posterior
        seconds = time.perf_counter() - begun
        gp, noise = model.decoders["x"], model.likelihoods["x"].learned()
        return _nlpd(table, held, q, lambda z: gp.moments(gp.features(z)), noise), seconds

    first = _curve(step, evaluate, sizes.ours, sizes, seed)
    model.eval()
    second = _curve(step, evaluate, sizes.refit, sizes, seed + 1)
    seconds = np.concatenate([first.seconds, first.seconds[-1] + second.seconds])
    return Curve(seconds, np.concatenate([first.nlpd, second.nlpd]))


def _peer(table: Observations, held: Tensor, sizes: Sizes, seed: int, rate: float) -> Curve:
    train = _without(table, held)
    model = _started(train, sizes, seed, "diagonal")
    gp, likelihood = model.decoders["x"], model.likelihoods["x"]
    assert isinstance(likelihood, Gaussian)
    part = train.parts["x"]
    peer = PeerGPLVM(gp.inducing.detach().clone(), part.value.shape[1])
    with torch.no_grad():
        copy_decoder(gp, likelihood, peer)
    latents = PeerLatents(model.locals.mean.detach(), model.locals.log_scale.detach())
    optimiser = torch.optim.Adam([*peer.parameters(), *latents.parameters()], lr=rate)
    known = part.sigma.square()

    def step(rows: Tensor, decay: float) -> None:
        z, divergence = latents(rows)
        total = peer.objective(z, part.value[rows], part.seen[rows], sizes.rows, known[rows]) + divergence
        optimiser.zero_grad()
        total.backward()
        optimiser.param_groups[0]["lr"] = rate * decay
        optimiser.step()

    def moments(z: Tensor) -> tuple[Tensor, Tensor]:
        f = peer(z)
        return f.mean.mT, f.variance.mT

    def evaluate() -> tuple[float, float]:
        q = GaussianLatent(latents.mean, torch.diag_embed(latents.log_scale.exp()))
        return _nlpd(table, held, q, moments, peer.log_noise.exp()[:, 0]), 0.0

    return _curve(step, evaluate, sizes.peer, sizes, seed)


def _curve(step: Step, evaluate: Evaluate, steps: int, sizes: Sizes, seed: int) -> Curve:
    marks = {0, steps, *np.unique(np.geomspace(1, steps, 40).round().astype(int)).tolist()}
    seconds, clock, nlpd = [], 0.0, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(sizes.rows)
        for number in range(steps + 1):
            if number in marks:
                value, extra = evaluate()
                seconds.append(clock + extra)
                nlpd.append(value)
            if number == steps:
                break
            if len(order) < sizes.batch:
                order = torch.randperm(sizes.rows)
            rows, order = order[: sizes.batch], order[sizes.batch :]
            decay = DECAY + (1 - DECAY) * 0.5 * (1 + np.cos(np.pi * number / steps))
            begun = time.perf_counter()
            step(rows, decay)
            clock += time.perf_counter() - begun
    return Curve(np.array(seconds), np.array(nlpd))


@torch.no_grad()
def _nlpd(table: Observations, held: Tensor, q: GaussianLatent, moments: Moments, noise: Tensor) -> float:
    """Mean negative log predictive density of the held-out cells, averaged over draws of the latents."""
    part = table.parts["x"]
    found = []
    for k in range(DRAWS):
        normal = torch.randn(1, *q.mean.shape, generator=torch.Generator().manual_seed(k))
        centre, variance = moments(q.draw(normal)[0])
        spread = variance + noise + part.sigma.square()
        found.append(-0.5 * (torch.log(2 * torch.pi * spread) + (part.value - centre).square() / spread)[held])
    return float(np.log(DRAWS) - torch.logsumexp(torch.stack(found).double(), 0).mean())


def _figure(curves: dict[int, dict[str, Curve]]) -> Figure:
    with style():
        figure = Figure(figsize=(3.4 * len(curves) + 0.6, 3.2), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (seed, found) in zip(panels, curves.items(), strict=True):
            for number, (name, curve) in enumerate(found.items()):
                label = name.replace("gpytorch", "GPyTorch, Adam")
                axes.plot(curve.seconds[1:], curve.nlpd[1:], color=COLOURS[number], label=label)
            axes.set(title=f"seed {seed}", xlabel="training time [s]", xscale="log")
            best = min(curve.nlpd.min() for curve in found.values())
            start = max(curve.nlpd[0] for curve in found.values())
            axes.set_xlim(left=0.1)
            axes.set_ylim(best - 0.1 * (start - best) - 1e-3, start + 0.1 * (start - best) + 1e-3)
        panels[0].set_ylabel("NLPD of held-out cells [nats]")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(RATES) + 1)
    return figure


if __name__ == "__main__":
    main("gplvm_quality", measure)

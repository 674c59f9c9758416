"""Where networks begin that no linear modality teaches: with latents that are slow functions of the cells."""

from collections.abc import Sequence

import torch
from torch import Tensor

from consilience.blocks.embedding import slow_coordinates
from consilience.models.bins import DeepBins, by_trial

__all__ = ["deep_start"]

FEWEST = 100  # pairs of bins without a missing cell that this takes
STEPS = 500  # of the networks towards them
TRIALS = 8  # of each of these steps
RATE = 1e-2


@torch.no_grad()
def deep_start(cells: Sequence[DeepBins], scale: Tensor, *, lag: int) -> None:
    """Bring encoders and decoders near the slowest functions of the cells.

    From random networks the bound alone folds a curve of pictures onto a latent, and does not unfold it again. Bins
    with missing cells are left out; with too few others nothing is done.

    Arguments:
        cells: Modalities with encoders, none taught, that read the same latents first.
        scale: Standard deviations of these, (Q,).
        lag: Bins after which slow functions are still alike.
    """
    parts = [by_trial(one.part, one.rows) for one in cells]
    known = torch.stack([seen.all(-1) for _, seen in parts]).all(0)  # (B, T)
    if int((known[:, :-lag] & known[:, lag:]).sum()) < FEWEST:
        return
    views = [value / value[known].var(0).sum().sqrt().clamp_min(1e-12) for value, _ in parts]
    z = slow_coordinates(torch.cat(views, -1), known, len(scale), lag=lag) * scale
    for one in cells:
        with torch.enable_grad():
            _towards(one, z, known)


def _towards(one: DeepBins, z: Tensor, known: Tensor) -> None:
    """Train one modality's networks on latents (B, T, Q) of the bins that are known (B, T)."""
    assert one.encoder is not None, "no modality teaches another"
    value, seen = by_trial(one.part, one.rows)
    parameters = [*one.encoder.parameters(), *one.decoder.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=RATE)
    order = torch.Generator().manual_seed(0)
    place, count = torch.arange(known.numel(), device=known.device).view_as(known), z.shape[-1]
    for step in range(STEPS):
        rows = torch.randperm(len(z), generator=order)[:TRIALS].to(z.device)
        some = known[rows]
        if not bool(some.any()):
            continue
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        mean, precision = (a[some] for a in one.encoder(value[rows], seen[rows]))
        away = (mean[:, :count] - z[rows][some]).square()
        # means regress whatever the precisions, and precisions follow them
        sure = precision[:, :count]
        teach = 0.5 * (away + sure * away.detach() - sure.log()).sum(-1).mean()
        rest = torch.zeros(len(away), len(one.columns) - count).to(z)
        f = one.decoder(torch.cat([z[rows][some], rest], -1))
        drawn = one.likelihood.expected(one.part[place[rows][some]], f, torch.zeros_like(f)).mean()
        optimiser.zero_grad()
        (teach - drawn).backward()
        optimiser.step()

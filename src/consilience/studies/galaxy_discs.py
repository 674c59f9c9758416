"""Galaxies that are one disc each: what a physics decoder reads of them, beside least squares object by object."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from astropy.table import Table
from torch import Tensor

from consilience.analysis.discs import discs
from consilience.analysis.scores import r_squared
from consilience.blocks.physics import Disc, Profile
from consilience.data.observations import Observations
from consilience.simulators.galaxy_images import PIXEL
from consilience.studies.galaxy_fits import Split
from consilience.studies.kept import Kept
from consilience.studies.runner import Results
from consilience.typing import FloatArray

__all__ = ["least_squares", "run_discs"]

MODEL = "dmvae_club_physics"
ELONGATED = 0.2  # ellipticity above which a position angle is scored
STEPS, DAMPING = 30, 1e-2  # of least squares
CHUNK = 32  # rows that are fitted together


def run_discs(splits: Sequence[Split], kept: Kept) -> Results:
    """Fit the model with a physics decoder to every split; R² of what its encoder and what least squares say."""
    found = [kept.part(split.label("discs"), lambda split=split: _measured(split, kept)) for split in splits]
    numbers: dict[str, float | int | bool | None] = {"seeds": len(splits), "galaxies": splits[0].size.galaxies}
    for key in found[0]:
        values = [float(part[key]) for part in found]
        numbers |= {key: float(np.mean(values)), f"{key}_min": min(values)}
    rows = [[split.seed, *(float(value) for value in part.values())] for split, part in zip(splits, found, strict=True)]
    first = splits[0]
    drawn = discs(first.model(MODEL, kept), first.test, "image", seed=first.seed)
    title = f"R² of discs on test rows, and their share of the images' variance (least squares: {_few(first)} rows)"
    return Results(numbers, {title: Table(rows=rows, names=["seed", *found[0]])}, {"discs": drawn.figure()})


def _measured(split: Split, kept: Kept) -> dict[str, float]:
    fitted, test = split.model(MODEL, kept), split.test
    answer = discs(fitted, test, "image", seed=split.seed)
    table = answer.table()
    said = {
        "radius": np.asarray(table["half_light_radius"]) * PIXEL,
        "axis_ratio": np.asarray(table["axis_ratio"]),
        "angle": np.deg2rad(np.asarray(table["position_angle"])),
    }
    some = slice(_few(split))
    found = {f"r2_{name}": value for name, value in _r2(said, test).items()}
    same = {name: value[some] for name, value in said.items()}
    for which, values in (("same_rows", same), ("least_squares", least_squares(test[some]))):
        found |= {f"r2_{name}_{which}": value for name, value in _r2(values, test[some]).items()}
    return found | {"physics_share": answer.share}


def _few(split: Split) -> int:
    return min(split.size.least_squares, len(split.test))


def _r2(said: Mapping[str, FloatArray], rows: Observations) -> dict[str, float]:
    """Of radius and its logarithm, axis ratio, and (cos 2θ, sin 2θ) of elongated discs."""
    cells = [cell.name for cell in rows.schema["true_structure"].cells]
    true = dict(zip(cells, rows.parts["true_structure"].value.T, strict=True))
    elongated = 1 - true["axis_ratio"] > ELONGATED
    turn = np.arctan2(true["e_sin2"], true["e_cos2"])[elongated]
    directions = [np.stack([np.cos(t), np.sin(t)], axis=1) for t in (turn, 2 * said["angle"][elongated])]
    whole = np.square(directions[0] - directions[0].mean(axis=0)).sum()
    return {
        "radius": float(r_squared(true["half_light_radius"], said["radius"])),
        "log_radius": float(r_squared(np.log(true["half_light_radius"]), np.log(said["radius"]))),
        "axis_ratio": float(r_squared(true["axis_ratio"], said["axis_ratio"])),
        "angle": 1 - float(np.square(directions[0] - directions[1]).sum() / whole),
    }


def least_squares(rows: Observations) -> dict[str, FloatArray]:
    """Radius in arcsec, axis ratio and position angle of the disc that fits each image best, its seeing given.

    Levenberg-Marquardt on weighted pixels of all bands, from a round disc of the image's flux.
    """
    part, seeing = rows.parts["image"], rows.parts["seeing"].value[:, 0] / PIXEL
    assert part.sigma is not None, "a survey's"
    disc = Disc(rows.schema["image"].shape, Profile(seeing=float(np.median(seeing)))).double()
    said: list[dict[str, Tensor]] = []
    for start in range(0, len(rows), CHUNK):
        some = slice(start, start + CHUNK)
        value, sigma = (torch.as_tensor(np.asarray(a[some], float)).flatten(1) for a in (part.value, part.sigma))
        u = _round(disc, value, torch.as_tensor(seeing[some]))
        said.append(disc.physical(_descended(disc, u, value, sigma)))
    joined = {name: torch.cat([one[name] for one in said]).detach().numpy() for name in said[0]}
    angle = 0.5 * np.arctan2(joined["e_sin2"], joined["e_cos2"])
    return {"radius": joined["half_light_radius"] * PIXEL, "axis_ratio": joined["axis_ratio"], "angle": angle}


def _round(disc: Disc, value: Tensor, seeing: Tensor) -> Tensor:
    """u of a round disc of the typical size and of the flux of each image, with its seeing."""
    flux = value.unflatten(1, (disc.bands, -1)).sum(-1).clamp_min(1e-3)
    t = disc.location.detach().expand(len(value), -1).clone()
    for column, name in enumerate(disc.names):
        if name == "log_flux":
            t[:, column] = flux[:, disc.middle].log()
        elif name.startswith("colour"):
            t[:, column] = (flux[:, int(name.split("_")[1])] / flux[:, disc.middle]).log()
        elif name == "log_seeing":
            t[:, column] = seeing.log()
        elif name == "log_radius":
            t[:, column] = 1.2
        elif name.startswith("v_"):
            t[:, column] = 0.1
    return (t - disc.location.detach()) / disc.log_width.detach().exp()


@torch.no_grad()
def _descended(disc: Disc, u: Tensor, value: Tensor, sigma: Tensor) -> Tensor:
    """The minimum of χ² from u (R, P), with the seeing as it is."""
    free = [column for column, name in enumerate(disc.names) if name != "log_seeing"]
    damping = torch.full((len(u), 1, 1), DAMPING, dtype=u.dtype)

    def residual(u: Tensor) -> Tensor:
        return (disc.flux(u).flatten(1) - value) / sigma

    r = residual(u)
    for _ in range(STEPS):
        j = disc.slopes(u)[1].flatten(2)[:, free].mT / sigma[..., None]
        normal, slope = j.mT @ j, (j.mT @ r[..., None])
        scaled = normal + damping * torch.diag_embed(normal.diagonal(dim1=-2, dim2=-1) + 1e-9)
        step = torch.linalg.solve(scaled, slope)[..., 0].clamp(-1, 1)
        trial = u.clone()
        trial[:, free] -= step
        new = residual(trial)
        better = new.square().sum(-1) < r.square().sum(-1)
        u, r = torch.where(better[:, None], trial, u), torch.where(better[:, None], new, r)
        damping = torch.where(better[:, None, None], damping / 5, damping * 4).clamp(1e-7, 1e6)
    return u

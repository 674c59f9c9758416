"""The figures of a report, drawn from a model's answers."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience import plots
from consilience.analysis.base import quantities, truth_of
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec
from consilience.predict.tiles import seen
from consilience.typing import FloatArray

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["Picture", "corner_of", "latent_of", "picture", "spectra_of"]

DRAWS = 400
MAPPED = 3000  # objects in the latent map
CORNER = 6  # dimensions of the corner plot


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as it stands in the page.

    Arguments:
        source: Data URI.
        alt: Description for those who cannot see it.
        caption: What it means.
        told: What is said at which place of it, as the page's script reads it.
    """

    source: str
    alt: str
    caption: str
    told: list[dict[str, Any]]


def picture(figure: plots.Figure, alt: str, caption: str) -> Picture:
    """The figure as inline SVG; one with very many paths as PNG, which is then smaller."""
    data, kind = plots.svg(figure), "svg+xml"
    if len(data) > 600_000:
        data, kind = plots.png(figure, dpi=200), "png"
    told = [
        {"name": one.name, "axes": one.axes, "place": one.place.round(4).tolist(), "told": one.told}
        for one in plots.readings(figure)
    ]
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt, caption, told)


def spectra_of(fitted: "Fitted", obs: Observations, seed: int, count: int = 3) -> list[Picture]:
    """Rows with few, typical and many gaps: bands of the gridded modality, given everything seen but a stretch of it.

    A tenth of the seen cells, in one stretch, is kept from the model.
    """
    spec = _gridded(fitted, obs)
    if spec is None:
        return []
    known = obs.parts[spec.name].measured
    share = known.mean(axis=1)
    order = np.argsort(-share)[: max(1, int((share > 0.02).sum()))]
    chosen = list(dict.fromkeys(int(order[int(q * (len(order) - 1))]) for q in np.linspace(0.1, 0.9, count)))
    some = obs[np.array(chosen)]
    hide = np.stack([_stretch(row) for row in some.parts[spec.name].measured])
    samples = fitted.sample(some.hide_cells({spec.name: hide}), [spec.name], n=DRAWS, seed=seed)
    part, found = some.parts[spec.name], []
    axis, centres, unit = _line(spec)
    for i, name in enumerate(some.ids):
        gaps = 1 - float(part.measured[i].mean())
        figure = plots.spectrum(
            centres,
            samples.values[spec.name][:, i],
            np.where(part.measured[i], part.value[i], np.nan),
            None if part.sigma is None else part.sigma[i],
            hide[i],
            plots.Labels(axis, spec.name, str(name), unit, spec.unit),
        )
        caption = (
            f"Object {name}: {100 * gaps:.0f} % of the cells of {spec.name} not seen (shaded). Bands are the noiseless "
            "quantity; the orange data were kept from the model."
        )
        found.append(picture(figure, f"{spec.name} of {name} with 68 and 95 % bands, data and residuals", caption))
    return found


def corner_of(fitted: "Fitted", obs: Observations, targets: Sequence[str], seed: int) -> Picture | None:
    """The posterior of the targets of one object, given everything else seen of it; None with fewer than two cells."""
    cells = [q for name in targets for q in quantities(fitted.schema[name], each=True)][:CORNER]
    if len(cells) < 2:
        return None
    truth = np.concatenate([truth_of(obs, name) for name in targets], axis=1)[:, : len(cells)]
    row = int(np.argmax(np.isfinite(truth).sum(axis=1)))
    one = obs[row]
    samples = fitted.sample(one.hide(*targets), list(targets), n=2000, seed=seed, observed=True, at=one)
    draws = np.concatenate([samples.values[name].reshape(2000, -1) for name in targets], axis=1)[:, : len(cells)]
    if not np.isfinite(draws).all():
        return None
    figure = plots.corner(draws, [q.name for q in cells], [q.unit for q in cells], truth[row], str(one.ids[0]))
    caption = (
        f"Joint posterior of {', '.join(targets)} of object {one.ids[0]} given everything else seen of it, the stated "
        "measurement error included. Red: the measured values, which the model was not shown."
    )
    return picture(figure, f"corner plot of {', '.join(q.name for q in cells)}", caption)


def latent_of(fitted: "Fitted", obs: Observations, targets: Sequence[str]) -> Picture | None:
    """Latent means projected on their first two principal components, coloured by the first target cell."""
    if "latent" not in fitted.capabilities:
        return None
    some = obs[: min(MAPPED, len(obs))]
    latent = fitted.latent(some)
    mean = latent.mean
    position = np.concatenate([mean[block].reshape(len(some), -1) for block in sorted(mean)], axis=1)
    if position.shape[1] < 2 or len(some) < 3:
        return None
    projected, share = _principal(position)
    cell = quantities(fitted.schema[targets[0]], each=True)[0]
    colour = truth_of(some, cell.modality)[:, cell.cells[0]]
    axes = [f"principal component {k + 1} ({100 * share[k]:.0f} % of variance)" for k in range(2)]
    figure = plots.latent_map(projected, colour, plots.Labels(*axes), plots.with_unit(cell.name, cell.unit))
    used = ", ".join(f"{count} of {mean[block][0].size} {block}" for block, count in latent.used().items())
    caption = (
        f"Each point is one object of this table in the latent space, coloured by its measured {cell.name}. "
        f"Dimensions of which these observations decide at least 5 %: {used}."
    )
    return picture(figure, f"latent map coloured by {cell.name}", caption)


def _gridded(fitted: "Fitted", obs: Observations) -> ModalitySpec | None:
    readable = seen(obs)
    for spec in obs.schema.modalities:
        ordered = (spec.grid or spec.time) and len(spec.shape) == 1
        if ordered and spec.name in readable and spec.kind != "category":
            if fitted.answers(readable, frozenset([spec.name])):
                return spec
    return None


def _line(spec: ModalitySpec) -> tuple[str, FloatArray, str]:
    """Name, bin centres and unit of the only axis of a modality with a grid or time bins."""
    if spec.time:
        return "time", spec.time.centres(spec.size), spec.time.unit
    assert spec.grid is not None
    return spec.grid.name, spec.grid.centres(), spec.grid.unit


def _stretch(known: np.ndarray) -> np.ndarray:
    cells = np.flatnonzero(known)
    size = len(cells) // 10
    hide = np.zeros(len(known), bool)
    start = int(0.55 * (len(cells) - size))
    hide[cells[start : start + size]] = True
    return hide


def _principal(position: FloatArray) -> tuple[FloatArray, FloatArray]:
    centred = position - position.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return (u * s)[:, :2], s**2 / max(float((s**2).sum()), 1e-300)

r"""Strictly increasing maps from physical to model units, per cell, on value and error bar.

.. math:: u = \frac{T(x) - m}{r}, \qquad \sigma_u = \sigma_x \frac{|T'(x)|}{r}, \qquad
          T(x) \in \Bigl\{x,\ \log x,\ \operatorname{asinh}(x / a),\
          \Phi^{-1}\Bigl(\frac{x - l}{h - l}\Bigr)\Bigr\}

The last is of cells with bounds l and h; what comes back lies between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri

from consilience.data.observations import Modality, Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.data.turning import turns
from consilience.errors import DataError
from consilience.typing import FloatArray

__all__ = ["CellTransform", "Scaler"]

# A cell seen in few rows borrows its scale from the modality, as if this many rows had been seen there.
PSEUDO_ROWS = 5.0
EDGE = 1e-7  # of the range of a cell with bounds: nearer to one of them, values count as this far from it


@dataclass(frozen=True, slots=True)
class CellTransform:
    r"""The map :math:`u = (T(x) - m) / r` of one modality, per cell.

    Arguments:
        location: m, shape (\*event).
        scale: r > 0, shape (\*event).
        stretch: a > 0 of the asinh map, shape (\*event); ones otherwise.
    """

    location: FloatArray
    scale: FloatArray
    stretch: FloatArray


@dataclass(frozen=True, slots=True)
class Scaler:
    """Per-cell scaling fitted on training rows, invertible on value and sigma.

    Counts, binaries and categories are never rescaled. Unseen cells leave :meth:`forward` with value 0 and sigma 1,
    so neither NaN nor its gradient enters a graph; a seen cell without a stated error bar gets sigma 0.

    Example:
        >>> import numpy as np
        >>> from consilience.data.schema import ModalitySpec, Schema
        >>> schema = Schema(modalities=(ModalitySpec(name="x", shape=(1,)),))
        >>> obs = Observations.from_arrays(schema, {"x": np.array([[1.0], [3.0], [np.nan]])})
        >>> scaled = Scaler.fit(obs).forward(obs).parts["x"].value
        >>> scaled.ravel().tolist()
        [-1.0, 1.0, 0.0]
    """

    schema: Schema
    transforms: Mapping[str, CellTransform]

    @classmethod
    def fit(cls, obs: Observations) -> "Scaler":
        """Fit on the measured cells of the training rows.

        Raises:
            DataError: a modality without one measured cell; a value that its scale does not know.
        """
        return cls(obs.schema, {spec.name: _fit(spec, obs.parts[spec.name]) for spec in obs.schema.modalities})

    def symmetric(self, names: Sequence[str]) -> "Scaler":
        """The same for all pixels of square images that turn into each other, so that images may turn in model units.

        Locations are averaged, and scales as they add in squares.
        """
        found = dict(self.transforms)
        for name in names:
            t = found[name]
            found[name] = CellTransform(_symmetric(t.location), np.sqrt(_symmetric(t.scale**2)), t.stretch)
        return Scaler(self.schema, found)

    def forward(self, obs: Observations) -> Observations:
        """Physical to model units, with the neutral fill where nothing was seen."""
        return replace(obs, parts={name: self._forward(name, part) for name, part in obs.parts.items()})

    def inverse(self, name: str, u: FloatArray) -> FloatArray:
        """Model to physical units for values of shape (…, *event)."""
        t = self.transforms[name]
        y = t.location + t.scale * u
        scaling = self.schema[name].scaling
        if scaling == "log":
            return np.exp(y)
        if scaling == "bounded":
            low, high = self.schema[name].between()
            bounded = np.isfinite(low)
            return np.where(bounded, _along(low, high, ndtr(y)), y)
        return t.stretch * np.sinh(y) if scaling == "asinh" else y

    def log_jacobian(self, obs: Observations) -> dict[str, FloatArray]:
        r""":math:`\log |\mathrm du/\mathrm dx|` of each measured continuous cell, 0 elsewhere; shape (N, \*event).

        Adding it to a log density in model units gives a density per physical unit.
        """
        found = {}
        for name, part in obs.parts.items():
            spec = self.schema[name]
            safe = np.where(part.measured, part.value, _inside(spec))
            slope = np.log(_derivative(spec, self.transforms[name], safe))
            found[name] = np.where(part.measured, slope, 0.0) if spec.kind in ("real", "positive") else 0.0 * safe
        return found

    def arrays(self) -> dict[str, FloatArray]:
        """The fitted numbers by name, to be saved."""
        return {
            f"{name}.{field}": getattr(transform, field)
            for name, transform in self.transforms.items()
            for field in CellTransform.__slots__
        }

    @classmethod
    def from_arrays(cls, schema: Schema, arrays: Mapping[str, FloatArray]) -> "Scaler":
        """Rebuild a scaler from :meth:`arrays`."""
        fields = CellTransform.__slots__
        return cls(schema, {n: CellTransform(*(arrays[f"{n}.{field}"] for field in fields)) for n in schema.names})

    def _forward(self, name: str, part: Modality) -> Modality:
        spec, t = self.schema[name], self.transforms[name]
        seen = part.seen
        safe = np.where(seen, part.value, _inside(spec))
        _check(spec, safe)
        value = np.where(seen, (_map(spec, t, safe) - t.location) / t.scale, 0.0)
        sigma = None
        if part.sigma is not None:
            stated = np.where(np.isfinite(part.sigma), part.sigma, 0.0)
            sigma = np.where(seen, stated * _derivative(spec, t, safe), 1.0)
        return Modality(
            value,
            part.state,
            sigma,
            None if part.coord is None else np.where(np.isfinite(part.coord), part.coord, 0.0),
            None if part.exposure is None else np.where(np.isfinite(part.exposure), part.exposure, 1.0),
            part.extent,
        )


def _symmetric(array: FloatArray) -> FloatArray:
    """Mean over the eight turns of an image (…, H, H)."""
    flat = array.reshape(*array.shape[:-2], -1)
    return flat[..., turns(array.shape[-1]).numpy()].mean(axis=-2).reshape(array.shape)


def _inside(spec: ModalitySpec) -> FloatArray | float:
    """A value of every cell that has a transform."""
    if spec.scaling == "bounded":
        low, high = spec.between()
        return np.where(np.isfinite(low), _along(low, high, 0.5), 0.0)
    return 1.0 if spec.scaling == "log" else 0.0


def _along(low: FloatArray, high: FloatArray, part: FloatArray | float) -> FloatArray:
    """Between finite bounds; what infinite ones give means nothing."""
    bounded = np.isfinite(low)
    low, high = np.where(bounded, low, 0.0), np.where(bounded, high, 1.0)
    return np.clip(low + (high - low) * part, low, high)


def _check(spec: ModalitySpec, x: FloatArray) -> None:
    """Nothing for values that have a transform.

    Raises:
        DataError: one has none.
    """
    if spec.scaling == "log" and (x <= 0).any():
        row = int(np.argwhere(x <= 0)[0][0])
        raise DataError(
            f"Expected positive values in '{spec.name}' (scale 'log'); got {x.min():g} in row {row} at first. "
            "Mark such cells unseen, or fit with scale='asinh'."
        )
    if spec.scaling == "bounded":
        low, high = spec.between()
        outside = (x < low) | (x > high)
        if outside.any():
            row, *cell = np.argwhere(outside)[0]
            column = spec.cell_names()[int(np.ravel_multi_index(cell, spec.shape)) if cell else 0]
            raise DataError(
                f"Expected values of '{column}' between its bounds {low[tuple(cell)]:g} and {high[tuple(cell)]:g}; got "
                f"{x[(row, *cell)]:g} in row {row} at first. Mark such cells unseen, or widen the bounds."
            )


def _map(spec: ModalitySpec, t: CellTransform, x: FloatArray) -> FloatArray:
    if spec.scaling == "log":
        return np.log(x)
    if spec.scaling == "bounded":
        low, high = spec.between()
        bounded = np.isfinite(low)
        part = np.where(bounded, x - low, 0.5) / np.where(bounded, high - low, 1.0)
        return np.where(bounded, ndtri(np.clip(part, EDGE, 1 - EDGE)), x)
    return np.arcsinh(x / t.stretch) if spec.scaling == "asinh" else x


def _derivative(spec: ModalitySpec, t: CellTransform, x: FloatArray) -> FloatArray:
    if spec.scaling == "log":
        return 1.0 / (x * t.scale)
    if spec.scaling == "asinh":
        return 1.0 / (np.hypot(x, t.stretch) * t.scale)
    if spec.scaling == "bounded":
        low, high = spec.between()
        bounded = np.isfinite(low)
        slope = np.sqrt(2 * np.pi) * np.exp(0.5 * np.where(bounded, _map(spec, t, x), 0.0) ** 2) / (high - low)
        return np.where(bounded, slope, 1.0) / t.scale
    return np.broadcast_to(1.0 / t.scale, x.shape)


def _fit(spec: ModalitySpec, part: Modality) -> CellTransform:
    ones = np.ones(spec.shape)
    if spec.kind in ("count", "binary", "category") or spec.scaling == "none":
        return CellTransform(0 * ones, ones, ones)
    if not part.measured.any():
        raise DataError(f"Expected measured cells in modality '{spec.name}'; got none. Drop it from the schema.")
    x = np.where(part.measured, part.value, np.nan)
    stretch = ones
    _check(spec, np.where(part.measured, part.value, _inside(spec)))
    if spec.scaling in ("log", "bounded"):
        x = _map(spec, CellTransform(ones, ones, ones), x)
    elif spec.scaling == "asinh":
        stretch = _softening(spec, part, x)
        x = np.arcsinh(x / stretch)
    count = np.isfinite(x).sum(axis=0)
    middle = np.nanmedian if spec.scaling == "robust" else np.nanmean
    spread = _half_width if spec.scaling == "robust" else np.nanstd
    # Cells of one grid share a scale where few rows saw them; separate quantities (cells) do not.
    alone = bool(spec.cells)
    whole_location, whole_scale = float(middle(x)), _positive(float(spread(x)))
    filled = np.where(count > 0, x, whole_location)  # a column of NaN would warn
    location = np.where(count > 0, middle(filled, axis=0), whole_location)
    scale = np.where(count > 1, spread(filled, axis=0), whole_scale)
    if not alone:
        weight = count / (count + PSEUDO_ROWS)
        location = weight * location + (1 - weight) * whole_location
        scale = np.sqrt(weight * scale**2 + (1 - weight) * whole_scale**2)
    return CellTransform(location, np.where(scale > 1e-12 * whole_scale, scale, whole_scale), stretch)


def _softening(spec: ModalitySpec, part: Modality, x: FloatArray) -> FloatArray:
    r"""a of the asinh map: three error bars, so that the map is linear where noise prevails.

    Without error bars it is the median :math:`|x|`. Named cells have one each, as one may be deeper than another by
    decades; those of a grid share one, no less than their median, since most are faint and the bright ones matter.

    References:
        Lupton, Gunn & Szalay 1999, AJ 118, 1406.
    """
    sigma = np.full(x.shape, np.nan) if part.sigma is None else np.where(part.measured, part.sigma, np.nan)
    if not spec.cells:
        return _positive(max(_median(np.abs(x)), 3 * _median(sigma))) * np.ones(spec.shape)
    each = [(3 * _median(sigma[:, c]), _median(np.abs(x[:, c]))) for c in range(spec.size)]
    return np.array([noise or typical or 1.0 for noise, typical in each])


def _median(x: FloatArray) -> float:
    """Of finite elements; 0 of none."""
    there = x[np.isfinite(x)]
    return float(np.median(there)) if len(there) else 0.0


def _half_width(x: FloatArray, axis: int | None = None) -> FloatArray:
    low, high = np.nanpercentile(x, [15.865, 84.135], axis=axis)
    return 0.5 * (high - low)


def _positive(value: float) -> float:
    return value if value > 0 else 1.0

"""What came out: draws, latent positions and summaries as plain arrays with names, units and ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.typing import FloatArray, IntArray, StringArray

if TYPE_CHECKING:
    import pyarrow
    import xarray
    from astropy.table import QTable

__all__ = ["Latent", "Predictive", "Samples"]


@dataclass(frozen=True, slots=True)
class Samples:
    """Posterior draws in physical units.

    Arguments:
        schema: Names and units of the drawn modalities.
        values: ``values[name]`` has shape (S, N, *event); NaN outside an object's extent.
        ids: Identifier of each object, shape (N,).
        member: Ensemble member behind each draw, shape (S,).

    Example:
        >>> import numpy as np
        >>> schema = Schema(modalities=(ModalitySpec(name="x", shape=(1,)),))
        >>> draws = Samples(schema, {"x": np.arange(5.0).reshape(5, 1, 1)}, np.array(["a"]), np.zeros(5, int))
        >>> draws.quantiles([0.5])["x"].tolist()
        [[[2.0]]]
    """

    schema: Schema
    values: Mapping[str, FloatArray]
    ids: StringArray
    member: IntArray

    def __len__(self) -> int:
        return len(self.member)

    def __getitem__(self, key: str | Sequence[str]) -> "Samples":
        """Draws of one object or several, by id."""
        wanted = [key] if isinstance(key, str) else list(key)
        row = {name: position for position, name in enumerate(self.ids)}
        unknown = [name for name in wanted if name not in row]
        if unknown:
            raise RequestError(f"Expected ids of sampled objects; got {unknown}. See samples.ids.")
        rows = [row[name] for name in wanted]
        return replace(self, values={n: v[:, rows] for n, v in self.values.items()}, ids=self.ids[rows])

    def quantiles(self, q: Sequence[float]) -> dict[str, FloatArray]:
        """Quantiles over the draws: shape (len(q), N, *event) per modality."""
        return {name: np.quantile(value, q, axis=0) for name, value in self.values.items()}

    def mean(self) -> dict[str, FloatArray]:
        """Mean over the draws: shape (N, *event) per modality."""
        return {name: value.mean(axis=0) for name, value in self.values.items()}

    def std(self) -> dict[str, FloatArray]:
        """Standard deviation over the draws: shape (N, *event) per modality."""
        return {name: value.std(axis=0) for name, value in self.values.items()}

    def to_table(self) -> "QTable":
        """An astropy table of summaries: mean, std and the 2.5, 16, 50, 84 and 97.5 % points of every cell.

        A modality with cells gives one set of columns per cell; another gives array columns. UCDs are in ``meta``.
        """
        from astropy import units
        from astropy.table import QTable

        table = QTable({"id": self.ids})
        for column, array, unit, ucd in self._summaries():
            table[column] = array * units.Unit(unit) if unit else array
            if ucd:
                table.columns[column].info.meta = {"ucd": ucd}  # type: ignore[attr-defined]
        return table

    def to_arrow(self) -> "pyarrow.Table":
        """The draws as an Arrow table: one row per object, one list column of draws per cell or modality."""
        import pyarrow as pa

        columns: dict[str, Any] = {"id": pa.array(self.ids.tolist())}
        fields = [pa.field("id", pa.string())]
        for spec in self.schema.modalities:
            value = np.moveaxis(self.values[spec.name], 0, -1).reshape(len(self.ids), spec.size, len(self))
            units, ucds = spec.cell_units(), [cell.ucd or spec.ucd for cell in spec.cells] or [spec.ucd] * spec.size
            if spec.cells:
                named = [(cell.name, value[:, i], units[i], ucds[i]) for i, cell in enumerate(spec.cells)]
            else:
                named = [(spec.name, value.reshape(len(self.ids), -1), spec.unit, spec.ucd)]
            for name, array, unit, ucd in named:
                columns[name] = pa.array(list(array), type=pa.list_(pa.float64()))
                fields.append(pa.field(name, columns[name].type, metadata={"unit": unit, "ucd": ucd}))
        return pa.table(columns, schema=pa.schema(fields, metadata={"draws": str(len(self))}))

    def to_xarray(self) -> "xarray.Dataset":
        """A dataset with dimensions ``chain`` (1), ``draw``, ``object`` and each modality's event axes."""
        import xarray as xr

        variables, coords = {}, {"object": self.ids, "draw": np.arange(len(self)), "chain": [0]}
        for spec in self.schema.modalities:
            dims = _event_dims(spec)
            if spec.time:
                coords[dims[0]] = (dims[0], spec.time.centres(spec.shape[0]), {"units": spec.time.unit})
            elif len(dims) == 1 and (spec.cells or spec.grid):
                coords[dims[0]] = [c.name for c in spec.cells] if spec.cells else spec.grid.centres()  # type: ignore[union-attr]
            attributes = {"units": spec.unit, "ucd": spec.ucd}
            if spec.cells:
                attributes["cell_units"] = ", ".join(spec.cell_units())
            variables[spec.name] = (("chain", "draw", "object", *dims), self.values[spec.name][None], attributes)
        return xr.Dataset(variables, coords=coords)

    def to_datatree(self) -> "xarray.DataTree":
        """An arviz-style tree with the draws in the group ``posterior``."""
        import xarray as xr

        return xr.DataTree.from_dict({"posterior": self.to_xarray()})

    def _summaries(self) -> list[tuple[str, FloatArray, str, str]]:
        mean, std = self.mean(), self.std()
        points = {"q025": 0.025, "q16": 0.16, "q50": 0.5, "q84": 0.84, "q975": 0.975}
        quantiles = self.quantiles(list(points.values()))
        found: list[tuple[str, FloatArray, str, str]] = []
        for spec in self.schema.modalities:
            arrays = {"mean": mean[spec.name], "std": std[spec.name]}
            arrays |= {key: quantiles[spec.name][i] for i, key in enumerate(points)}
            for key, array in arrays.items():
                if spec.cells:
                    for i, cell in enumerate(spec.cells):
                        unit = spec.cell_units()[i]
                        found.append((f"{cell.name}_{key}", array[:, i], unit, cell.ucd or spec.ucd))
                else:
                    found.append((f"{spec.name}_{key}", array, spec.unit, spec.ucd))
        return found


@dataclass(frozen=True, slots=True)
class Latent:
    """Gaussian posteriors of the latent blocks: ``mean[block]`` and ``std[block]`` of shape (N, *block)."""

    mean: Mapping[str, FloatArray]
    std: Mapping[str, FloatArray]
    ids: StringArray

    def informed(self) -> dict[str, FloatArray]:
        r"""How much of each dimension the observations decide, in [0, 1], shape (\*block) per block.

        :math:`\mathrm{Var}_n(\mu_n) / [\mathrm{Var}_n(\mu_n) + \mathrm{E}_n\sigma_n^2]`: 0 where every object keeps the
        population's distribution, 1 where it is pinned.

        References:
            Importance weighted autoencoders (Burda et al., 2016), for units that are active or not.
        """
        found = {}
        for block, mean in self.mean.items():
            between, within = mean.var(axis=0), np.square(self.std[block]).mean(axis=0)
            found[block] = between / np.maximum(between + within, 1e-300)
        return found

    def used(self, least: float = 0.05) -> dict[str, int]:
        """Dimensions of each block of which the observations decide at least this share.

        Example:
            >>> z = {"shared": np.array([[0.0, 1.0], [0.0, -1.0]])}
            >>> Latent(z, {"shared": np.full((2, 2), 0.5)}, np.array(["a", "b"])).used()
            {'shared': 1}
        """
        return {block: int((share >= least).sum()) for block, share in self.informed().items()}


@dataclass(frozen=True, slots=True)
class Predictive:
    """Streamed summaries of draws: ``statistics[name][statistic]`` of shape (N, *event), physical units."""

    schema: Schema
    statistics: Mapping[str, Mapping[str, FloatArray]]
    ids: StringArray
    draws: int


def _event_dims(spec: ModalitySpec) -> list[str]:
    if spec.time:
        return [f"{spec.name}_time", *(f"{spec.name}_{axis}" for axis in range(1, len(spec.shape)))]
    if len(spec.shape) == 1:
        return [f"{spec.name}_{spec.axis or (spec.grid.name if spec.grid else 'cell')}"]
    return [f"{spec.name}_{axis}" for axis in range(len(spec.shape))]

"""Files to and from tables: one format, one file."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.errors import DataError, SchemaError
from consilience.typing import PathOrStr

if TYPE_CHECKING:
    from consilience.data.observations import Observations
    from consilience.data.samples import Samples
    from consilience.data.schema import Schema
    from consilience.io.raw import FileSummary, RawTable

__all__ = ["READERS", "WRITERS", "describe", "read", "read_table", "write"]

READERS = {  # suffix -> function of a path that returns a RawTable
    ".parquet": "consilience.io.mmu:read_parquet",
    ".hdf5": "consilience.io.mmu:read_hdf5",
    ".h5": "consilience.io.mmu:read_hdf5",
    ".csv": "consilience.io.tables:read_csv",
    ".ecsv": "consilience.io.tables:read_ecsv",
    ".npz": "consilience.io.npz:read_npz",
    ".fits": "consilience.io.fits:read_fits",
    ".fit": "consilience.io.fits:read_fits",
    ".fits.gz": "consilience.io.fits:read_fits",
}
UNTYPED = (".csv",)
EVENTS = {".nwb": "consilience.io.nwb:read_nwb"}  # suffix -> function of a path and a schema
WRITERS = {  # suffix -> function of observations or draws and a path
    ".parquet": "consilience.io.tables:write_parquet",
    ".csv": "consilience.io.tables:write_csv",
    ".ecsv": "consilience.io.tables:write_ecsv",
    ".npz": "consilience.io.npz:write_npz",
    ".fits": "consilience.io.fits:write_fits",
}


def read(path: PathOrStr | Sequence[PathOrStr], schema: "Schema | PathOrStr | None" = None) -> "Observations":
    """The observations in a file, by its suffix; or in a folder or list of SDSS ``spec-*.fits``, one row each.

    A file that :func:`write` made carries its schema (CSV does not). Any other needs one, which may name files beside
    the table as well: ``column = "cutouts/{name}.fits"`` is an image for each row (:mod:`consilience.io.cutouts`).

    Arguments:
        path: Parquet, HDF5 (the Multimodal Universe, or any arrays with a row per object), CSV, ECSV, NPZ, FITS, or
            NWB, whose trials are binned as the schema says.
        schema: What the columns mean, or the path of a TOML or JSON file that says so.

    Raises:
        DataError: the file is missing, damaged, empty, of another format, or its cells contradict the schema.
        SchemaError: no schema, a broken one, or a unit that does not convert.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from consilience.data.observations import Observations
        >>> from consilience.data.schema import ModalitySpec, Schema
        >>> x = ModalitySpec(name="x", shape=(2,), unit="Jy")
        >>> obs = Observations.from_arrays(Schema(modalities=(x,)), {"x": np.ones((3, 2))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(obs, f"{folder}/a.parquet")
        ...     len(read(f"{folder}/a.parquet"))
        3
    """
    from consilience.data.schema import Schema
    from consilience.io.frames import framed
    from consilience.io.meaning import observations_of

    meaning = schema if schema is None or isinstance(schema, Schema) else Schema.read(schema)
    if isinstance(path, str | Path) and Path(path).suffix.lower() in EVENTS:
        if meaning is None:
            raise SchemaError(f"Expected a schema for {path}, whose events it bins; got none. Give `schema`.")
        return _named(EVENTS, path)(path, meaning)
    text = () if meaning is None else (meaning.id, *([meaning.group] if meaning.group else []))
    table = read_table(path, text=text)
    meaning = meaning or table.schema
    if meaning is None:
        raise SchemaError(
            f"Expected a schema for {table.source}, which carries none; it has the columns {list(table.columns)}. "
            "Give `schema`, a TOML file that says what they mean."
        )
    first = Path(path[0] if isinstance(path, Sequence) and not isinstance(path, str) else path)
    return observations_of(framed(table, meaning), meaning, first if first.is_dir() else first.parent)


def write(content: "Observations | Samples", path: PathOrStr) -> None:
    """Write observations or draws by the suffix of the path, whole or not at all.

    Observations keep values, error bars, states, ids, groups, units and UCDs in Parquet, FITS, ECSV and NPZ. CSV has
    neither units nor a schema: give the schema to read it back. Draws go whole to Parquet and NPZ, as summaries to
    ECSV and FITS.

    Raises:
        DataError: an unknown suffix, a folder that does not exist, or what the format cannot hold.
    """
    _named(WRITERS, path)(content, Path(path))


def read_table(path: PathOrStr | Sequence[PathOrStr], *, text: Sequence[str] = ()) -> "RawTable":
    """The columns of a file as they are, before a schema gives them meaning.

    Arguments:
        path: Parquet, HDF5, CSV, ECSV, NPZ, FITS, or a folder or list of SDSS ``spec-*.fits``.
        text: Columns that are text even where they look like numbers, for a format without types (CSV).

    Raises:
        DataError: the file is missing, damaged or of an unknown suffix.
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        from consilience.io.spectra import raw_spectra

        return raw_spectra(list(path))
    path = Path(path)  # type: ignore[arg-type] - a list was dealt with above
    if path.is_dir():
        from consilience.io.spectra import raw_spectra, spectrum_files

        return raw_spectra(spectrum_files(path))
    reader = _named(READERS, path)
    if not path.is_file():
        raise DataError(f"Expected a file at {path}; got none. Check the path.")
    return reader(path, text) if path.suffix.lower() in UNTYPED else reader(path)


def describe(path: PathOrStr | Sequence[PathOrStr]) -> "FileSummary":
    """A file in words, without a schema: ``rows``, ``columns`` (name, dtype, shape, unit, missing) and ``schema``."""
    from consilience.io.raw import summary

    return summary(read_table(path))


def _named(table: dict[str, str], path: PathOrStr) -> Callable[..., Any]:
    name = Path(path).name.lower()
    # The longest suffix that fits, so that .fits.gz is not taken for .gz.
    suffix = next((one for one in sorted(table, key=len, reverse=True) if name.endswith(one)), None)
    if suffix is None:
        raise DataError(f"Expected a file that ends in one of {', '.join(table)}; got {path}. Convert or rename it.")
    module, function = table[suffix].split(":")
    return getattr(importlib.import_module(module), function)

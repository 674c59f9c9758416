"""NPZ archives of plain arrays; pickled objects are never loaded."""

import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from consilience.data.observations import Observations
from consilience.data.samples import Samples
from consilience.errors import DataError
from consilience.io.atomic import atomic_path
from consilience.io.native import to_columns
from consilience.io.raw import SCHEMA_KEY, RawColumn, RawTable, guarded, parsed_schema, schema_text
from consilience.typing import PathOrStr

__all__ = ["read_npz", "write_npz"]

# NotImplementedError is zipfile's word for a compression that it does not know
DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, TypeError)


def read_npz(path: PathOrStr) -> RawTable:
    """The arrays of an NPZ archive as columns; the number of rows is the most common first length.

    Single numbers are left out. An array that all rows share, such as one wavelength axis, may serve as ``coord``.

    Raises:
        DataError: the file is not an NPZ archive, is damaged, or holds pickled objects.
    """
    text, columns = None, {}
    with guarded(path, "NPZ", DAMAGE), Path(path).open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("one bare array instead of an archive")
        with archive:
            for name in archive.files:
                array = archive[name]
                if name == SCHEMA_KEY:
                    text = str(array)
                elif array.ndim and array.dtype.kind in "biuf":
                    columns[name] = array
                elif array.ndim == 1 and array.dtype.kind in "SU":
                    columns[name] = array.astype(object)
    lengths = Counter(len(array) for array in columns.values())
    schema = None if text is None else parsed_schema(text, str(path))
    found = {name: RawColumn(array) for name, array in columns.items()}
    return RawTable(found, lengths.most_common(1)[0][0] if lengths else 0, str(path), schema)


def write_npz(content: Observations | Samples, path: PathOrStr) -> None:
    """Observations as arrays with the schema as text beside them, or draws (S, N, *event) with ``id`` and ``member``.

    Raises:
        DataError: a modality of draws is called ``id`` or ``member``.
    """
    if isinstance(content, Samples):
        twice = {"id", "member"} & set(content.values)
        if twice:
            raise DataError(f"Expected modalities not called id or member in {path}; got {sorted(twice)}. Rename them.")
        arrays = {"id": content.ids, "member": content.member, **content.values}
    else:
        raw = to_columns(content, str(path))
        arrays = {name: column.values for name, column in raw.columns.items()}
        arrays[SCHEMA_KEY] = np.array(schema_text(content.schema))
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        # numpy.savez takes names as keyword arguments and stumbles over a column called `file`.
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)

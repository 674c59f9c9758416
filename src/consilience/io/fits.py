"""FITS binary tables, both directions, and the choice between a table and a spectrum."""

from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from consilience.data.observations import Observations
from consilience.data.samples import Samples
from consilience.errors import DataError
from consilience.io.atomic import atomic_path
from consilience.io.native import to_columns
from consilience.io.raw import RawColumn, RawTable, parsed_schema, schema_text
from consilience.io.spectra import is_spectrum, opened, raw_spectra
from consilience.io.tables import astropy_table, raw_astropy
from consilience.typing import PathOrStr

__all__ = ["read_fits", "write_fits"]

SCHEMA_HDU = "CONSILIENCE"


def read_fits(path: PathOrStr) -> RawTable:
    """The first binary table of a FITS file, or its spectrum where it has the layout of SDSS ``spec-*.fits``.

    Units are TUNITn, UCDs TUCDn.

    Raises:
        DataError: the file is not FITS, is damaged, or holds no table.
    """
    with opened(path) as hdus:
        if not is_spectrum(hdus):
            return _raw_table(hdus, str(path))
    return raw_spectra([path])


def write_fits(content: Observations | Samples, path: PathOrStr) -> None:
    """Observations as a binary table with the schema in a second one, or a table of summaries of draws.

    Raises:
        DataError: text that is not ASCII, which FITS cannot hold.
    """
    if isinstance(content, Samples):
        summary = content.to_table()
        raw = RawTable({name: raw_astropy(summary[name]) for name in summary.colnames}, len(summary), str(path))
    else:
        raw = to_columns(content, str(path))
    _require_ascii(raw)
    # Units are set as cards: they stay as the schema spells them, where astropy would refuse what FITS does not list.
    bare = {name: RawColumn(_packed(column.values)) for name, column in raw.columns.items()}
    hdus: list[Any] = [fits.PrimaryHDU(), fits.table_to_hdu(astropy_table(RawTable(bare, raw.rows, raw.source)))]
    for at, column in enumerate(raw.columns.values()):
        for key, text in ((f"TUNIT{at + 1}", column.unit), (f"TUCD{at + 1}", column.ucd)):
            if text:
                hdus[1].header[key] = text
    if raw.schema is not None:
        text = schema_text(raw.schema)
        column = fits.Column("schema", f"{len(text)}A", array=np.array([text]))
        hdus.append(fits.BinTableHDU.from_columns([column], name=SCHEMA_HDU))
    with atomic_path(path) as temporary:
        fits.HDUList(hdus).writeto(temporary, checksum=True)


def _raw_table(hdus: Any, source: str) -> RawTable:  # noqa: ANN401 - an HDUList, whose members astropy does not type
    tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU) and hdu.name != SCHEMA_HDU]
    if not tables:
        raise ValueError("no table among its extensions")
    table, columns = Table.read(tables[0]), {}
    for at, name in enumerate(table.colnames):
        column = raw_astropy(table[name])
        columns[name] = RawColumn(column.values, column.unit, str(tables[0].header.get(f"TUCD{at + 1}", "")))
    schema = parsed_schema(str(hdus[SCHEMA_HDU].data["schema"][0]), source) if SCHEMA_HDU in hdus else None
    return RawTable(columns, len(table), source, schema)


def _packed(values: NDArray[Any]) -> NDArray[Any]:
    """Text of fixed width, as FITS keeps it."""
    return values.astype(np.str_) if values.dtype == object else values


def _require_ascii(table: RawTable) -> None:
    words = [*table.columns, *(column.unit or "" for column in table.columns.values())]
    for column in table.columns.values():
        words += [str(text) for text in column.values] if column.values.dtype.kind in "OU" else [column.ucd]
    foreign = next((word for word in words if not word.isascii()), None)
    if foreign is not None:
        raise DataError(
            f"Expected ASCII text in {table.source}; got {foreign!r}, which FITS cannot hold. Write Parquet or ECSV."
        )

"""Spectra in the layout of SDSS ``spec-PLATE-MJD-FIBER.fits``: one file per object."""

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning

from consilience.data.observations import Observations
from consilience.errors import DataError, SchemaError
from consilience.io.atomic import atomic_path
from consilience.io.raw import RawColumn, RawTable, from_rows, guarded
from consilience.typing import PathOrStr

__all__ = ["SDSS_FLUX", "is_spectrum", "opened", "raw_spectra", "spectrum_files", "write_spectra"]

SDSS_FLUX = "1e-17 erg / (Angstrom s cm2)"  # the unit that the layout prescribes; files may leave it out
SDSS_IVAR = "1e34 Angstrom2 s2 cm4 / erg2"
FLUX_COLUMNS = ("flux", "ivar", "loglam")
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(VerifyError, AstropyWarning, zlib.error),
)
try:  # of a damaged tile of a compressed image; public nowhere, so another version may call it otherwise
    from astropy.io.fits.hdu.compressed._compression import CfitsioException
except ImportError:
    pass
else:
    DAMAGE = (*DAMAGE, CfitsioException)


def raw_spectra(paths: Sequence[PathOrStr]) -> RawTable:
    r"""One row per file: the coadded spectrum on its own pixels, the id and every number of the object's record.

    Columns: ``id`` (PLATE-MJD-FIBER), ``z``, and per pixel ``flux`` (10⁻¹⁷ erg/s/cm²/Å), ``ivar``, ``and_mask`` and
    ``wavelength`` :math:`= 10^{\mathrm{loglam}}` (Å); then the scalar numbers of the extension SPALL or SPECOBJ under
    their own names. In a schema: ``column = "flux"``, ``ivar = "ivar"``, ``mask = "and_mask"``,
    ``coord = "wavelength"`` and a ``grid``.

    Raises:
        DataError: a file is missing, damaged, or of another layout; names it.

    References:
        SDSS data model, files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.
    """
    records = [_record(Path(path)) for path in paths]
    if not records:
        raise DataError("Expected spec-*.fits files; got none. Check the folder.")
    source = str(paths[0]) if len(paths) == 1 else f"{len(records)} spectra"
    units = {"flux": SDSS_FLUX, "ivar": SDSS_IVAR, "wavelength": "Angstrom"}
    columns = {"id": RawColumn(np.array([record.pop("id") for record in records], dtype=object))}
    for name in ("flux", "ivar", "and_mask", "wavelength"):
        columns[name] = RawColumn(from_rows([record.pop(name) for record in records]), units.get(name))
    for name in dict.fromkeys(key for record in records for key in record):
        columns[name] = RawColumn(np.array([record.get(name, np.nan) for record in records]))
    return RawTable(columns, len(records), source)


def is_spectrum(hdus: Any) -> bool:  # noqa: ANN401 - an HDUList, whose members astropy does not type
    """True where the first extension holds flux, ivar and loglam."""
    if len(hdus) < 2 or not isinstance(hdus[1], fits.BinTableHDU):
        return False
    return set(FLUX_COLUMNS) <= {name.lower() for name in hdus[1].columns.names}


def spectrum_files(folder: Path) -> list[PathOrStr]:
    """The ``spec-*.fits`` files of a folder, in the order of their names.

    Raises:
        DataError: there are none.
    """
    found = sorted([*folder.glob("spec-*.fits"), *folder.glob("spec-*.fits.gz")])
    if not found:
        raise DataError(f"Expected spec-*.fits files in {folder}; got none. Give the folder that holds them.")
    return list(found)


def write_spectra(obs: Observations, name: str, folder: PathOrStr) -> list[Path]:
    r"""One ``spec-ID.fits`` per row with modality ``name`` as flux, ivar, and_mask and loglam; returns the paths.

    :math:`\mathrm{ivar} = s^{-2}`, 0 where unseen; ``and_mask`` is 1 there. Every file is whole or not there.

    Raises:
        SchemaError: the modality has no grid of wavelengths, or a unit that is not a flux density.
        DataError: the folder does not exist, a seen cell is a limit or has no error bar.
    """
    from astropy import units

    spec, part = obs.schema[name], obs.parts[name]
    if spec.grid is None or len(spec.shape) != 1:
        raise SchemaError(f"Expected a grid of wavelengths for '{name}'; got none. Declare `grid` in the schema.")
    try:
        scale = units.Unit(spec.unit).to(units.Unit(SDSS_FLUX))
        wave = spec.grid.centres() * units.Unit(spec.grid.unit).to(units.Angstrom)
    except units.UnitConversionError as error:
        raise SchemaError(
            f"Expected '{name}' in units of flux density and wavelength; got {spec.unit!r} on {spec.grid.unit!r}. "
            "Set `unit` and the grid's `unit`."
        ) from error
    seen = np.asarray(part.seen)
    sigma = np.full(seen.shape, np.nan) if part.sigma is None else np.asarray(part.sigma)
    if (seen & ~(np.asarray(part.measured) & np.isfinite(sigma) & (sigma > 0))).any():
        raise DataError(f"Expected a value and an error bar in every seen cell of '{name}'; got limits or none.")
    ivar = np.where(seen, np.where(seen, sigma * scale, 1.0) ** -2.0, 0.0)
    flux = np.where(seen, np.asarray(part.value) * scale, 0.0)
    written = []
    for row, key in enumerate(obs.ids):
        columns = [
            fits.Column("flux", "D", array=flux[row], unit="1E-17 erg/cm^2/s/Ang"),
            fits.Column("loglam", "D", array=np.log10(wave)),
            fits.Column("ivar", "D", array=ivar[row]),
            fits.Column("and_mask", "J", array=(~seen[row]).astype(np.int32)),
        ]
        primary = fits.PrimaryHDU()
        primary.header["OBJID"] = str(key)
        path = Path(folder) / f"spec-{_file_name(str(key))}.fits"
        with atomic_path(path) as temporary:
            fits.HDUList([primary, fits.BinTableHDU.from_columns(columns, name="COADD")]).writeto(temporary)
        written.append(path)
    return written


@contextmanager
def opened(path: PathOrStr) -> Iterator[Any]:
    """The HDUs of a FITS file, read whole; a truncated file is an error, a strange header card is not.

    Raises:
        DataError: the file is not FITS, or is damaged.
    """
    with guarded(path, "FITS", DAMAGE), warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        for damage in (".*truncated.*", ".*corrupt.*", "Error validating header.*", ".*sum verification failed.*"):
            warnings.filterwarnings("error", message=damage, category=AstropyWarning)
        # The file is opened here, since astropy leaves it open where it fails.
        with (
            Path(path).open("rb") as file,
            fits.open(file, memmap=False, lazy_load_hdus=False, checksum=True) as hdus,
        ):
            yield hdus


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"Expected a spectrum at {path}; got no such file. Check the path.")
    with opened(path) as hdus:
        if not is_spectrum(hdus):
            raise ValueError(f"no columns {', '.join(FLUX_COLUMNS)} in the first extension")
        data = {name.lower(): np.asarray(hdus[1].data[name]) for name in hdus[1].columns.names}
        found: dict[str, Any] = {name: data[name].astype(np.float64) for name in ("flux", "ivar")}
        found["wavelength"] = 10 ** data["loglam"].astype(np.float64)
        found["and_mask"] = data.get("and_mask", np.zeros(len(found["flux"]))).astype(np.float64)
        scalars = _scalars(hdus)
        header = hdus[0].header
        stem = path.name.split(".fits")[0].removeprefix("spec-")
        found["id"] = header.get("OBJID") or _identifier(header, scalars) or stem
        found["z"] = scalars.get("Z", header.get("Z", np.nan))
        return found | {name: value for name, value in scalars.items() if name not in found}


def _scalars(hdus: Any) -> dict[str, float]:  # noqa: ANN401
    for hdu in hdus[2:]:
        if isinstance(hdu, fits.BinTableHDU) and hdu.name in ("SPALL", "SPECOBJ") and len(hdu.data):
            row: Any = hdu.data[:1]
            names = [name for name in row.names if row[name].ndim == 1 and row[name].dtype.kind in "biuf"]
            return {name: float(row[name][0]) for name in names}
    return {}


def _identifier(header: Mapping[str, Any], scalars: Mapping[str, float]) -> str | None:
    found = [
        scalars.get(one, header.get(other))
        for one, other in (("PLATE", "PLATEID"), ("MJD", "MJD"), ("FIBERID", "FIBERID"))
    ]
    if any(number is None for number in found):
        return None
    plate, mjd, fiber = (int(float(str(number))) for number in found)
    return f"{plate:04d}-{mjd:05d}-{fiber:04d}"


def _file_name(key: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in key)

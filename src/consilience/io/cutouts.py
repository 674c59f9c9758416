"""Cutouts: images in one FITS file per object, or per object and band, in a folder beside the table.

A modality whose ``column`` names a file with a column of the table in braces is read from those files::

    id = "name"
    [modalities.image]
    shape = [3, 64, 64]
    column = "cutouts/{name}.fits"            # the first image in the file
    ivar = "cutouts/{name}.fits[1]"           # an extension by number or name
    mask = "cutouts/{name}.fits[2]"           # (H, W): one for all bands; "not cutouts/…" where true is clean
    unit = "nmgy"                             # BUNIT converts where the file states one

Paths begin in the folder of the table. Lists in brackets are stacked in their order: ``cutouts/{name}-[g, r, z].fits``
has a file for each band, ``cutouts/{name}.fits[G, R, Z]`` an extension, and ``cutouts/{name}.fits[0][g, r, z]`` planes
of one extension that its header calls so (BAND0, BAND1, …, as the Legacy Surveys' cutouts do).
"""

import math
import os.path
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.data.observations import Modality, Observations, State, canonical_ids
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.io.columns import parts_of
from consilience.io.frames import pictures
from consilience.io.raw import PLACEHOLDER, RawColumn, RawTable
from consilience.io.spectra import opened
from consilience.typing import StringArray

__all__ = ["in_files", "with_cutouts"]

FILES = re.compile(r"(not )?(.*\.(?:fits|fit|fits\.gz|fits\.fz))(?:\[([^\[\]]*)\])?(?:\[([^\[\]]*)\])?", re.IGNORECASE)
LIST = re.compile(r"\[([^\[\]]*)\]")
OUTSIDE = re.compile(r".*[/\\\0].*|\.\.?", re.DOTALL)  # text that would lead to another folder


def in_files(spec: ModalitySpec, table: RawTable) -> bool:
    """True where a modality lies in files beside the table."""
    name = spec.column or ""
    return PLACEHOLDER.search(name) is not None and not {name, f"{name}_0"} & set(table.columns)


def with_cutouts(obs: Observations, table: RawTable, schema: Schema, folder: Path) -> Observations:
    r"""The observations with the images that lie in files, in the order of ``schema``.

    A row whose file is not there is unseen. Files are opened one by one; images are kept in single precision.

    Arguments:
        obs: What the table itself holds.
        table: The same rows, whose columns spell the files' names.
        schema: All modalities.
        folder: Where relative paths begin.

    Raises:
        DataError: a file that is damaged, has no such extension or band, or smaller images; text that would lead out
            of the folder; or no file at all.
        SchemaError: a name that is no FITS file, another shape than (bands, H, W) or (H, W), or a unit that does not
            convert.

    Example:
        >>> import tempfile
        >>> from astropy.io import fits
        >>> from consilience.io import read
        >>> image = ModalitySpec(name="image", shape=(3, 5, 5), column="cutouts/{name}.fits")
        >>> with tempfile.TemporaryDirectory() as home:
        ...     _ = Path(home, "a.csv").write_text("name\nM31\nM33\n")
        ...     Path(home, "cutouts").mkdir()
        ...     fits.writeto(f"{home}/cutouts/M31.fits", np.ones((3, 9, 9)))
        ...     read(f"{home}/a.csv", Schema(id="name", modalities=(image,))).parts["image"].seen.any(axis=(1, 2, 3))
        array([ True, False])
    """
    parts = {
        spec.name: obs.parts[spec.name] if spec.name in obs.parts else _images(spec, table, obs.ids, folder)
        for spec in schema.modalities
    }
    return replace(obs, schema=schema, parts=parts)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is taken from one file: an extension, or planes of it."""

    path: str  # with columns in braces
    extension: str = ""  # name or number; the first image by default
    bands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Files:
    """The files that a name in a schema means, stacked along the bands."""

    pieces: tuple[_Piece, ...]
    negated: bool

    @classmethod
    def named(cls, name: str) -> "_Files":
        match = FILES.fullmatch(name)
        if match is None:
            raise SchemaError(
                f"Expected a FITS file for each row, such as 'cutouts/{{id}}.fits[1]'; got {name!r}. Mend the schema."
            )
        negated, path, extensions, bands = match.groups()
        within = LIST.search(path)
        paths = [path]
        if within is not None:
            paths = [path[: within.start()] + word + path[within.end() :] for word in _listed(within[1])]
        pieces = [
            _Piece(one, extension, _listed(bands) if bands else ())
            for one in paths
            for extension in (_listed(extensions) if extensions else ("",))
        ]
        return cls(tuple(pieces), negated is not None)


def _images(spec: ModalitySpec, table: RawTable, ids: StringArray, folder: Path) -> Modality:
    """One modality, each row of which is checked like a table of one row."""
    if len(spec.shape) not in (2, 3):
        raise SchemaError(
            f"Expected shape (bands, height, width) for '{spec.name}', which lies in files; got {spec.shape}."
        )
    names = [name for name in (spec.column, spec.sigma, spec.ivar, spec.mask) if name is not None]
    fields = {name: _Files.named(name) for name in names}
    for name, files in fields.items():
        if math.prod(spec.shape[:-2]) % len(files.pieces):
            raise SchemaError(
                f"Expected a list of as many bands as in shape {spec.shape} of '{spec.name}'; got {len(files.pieces)} "
                f"in {name!r}. Mend the list or the shape."
            )
    pieces = [piece for files in fields.values() for piece in files.pieces]
    words = _words(table, {name for piece in pieces for name in PLACEHOLDER.findall(piece.path)})
    size = (len(ids), *spec.shape)
    value, state = np.full(size, np.nan, np.float32), np.full(size, State.UNSEEN, np.int8)
    sigma = None if spec.sigma is None and spec.ivar is None else value.copy()
    one = Schema(modalities=(spec,))
    for row, key in enumerate(ids):
        paths = {piece: _path(piece, words, row, folder) for piece in pieces}
        found = dict(_read(paths))
        images = fields[names[0]].pieces
        if found.keys().isdisjoint(images):
            continue
        columns, source = {one.id: RawColumn(np.array([key]))}, str(paths[images[0]])
        for name, files in fields.items():
            columns[name] = _stacked(files, found, paths, spec, every=name != names[0])
        part = _checked(RawTable(columns, 1, source), one)
        value[row], state[row] = part.value[0], part.state[0]
        if sigma is not None:
            sigma[row] = part.sigma[0]
    if not (state >= State.MEASURED).any():
        raise DataError(
            f"Expected seen pixels of '{spec.name}' in {folder / str(spec.column)}; got none in {len(ids)} rows. "
            "Check the folder, the names of the files and the mask."
        )
    return Modality(value, state, sigma)


def _words(table: RawTable, names: set[str]) -> Mapping[str, StringArray]:
    """Text of the columns in braces, each a single part of a path."""
    found = {}
    for name in names:
        found[name] = canonical_ids(table.column(name).values, unique=False)
        for row, word in enumerate(found[name]):
            if OUTSIDE.fullmatch(word):
                raise DataError(
                    f"Expected text that can be part of a file's name in column {name!r} of {table.source}; got "
                    f"{str(word)!r} in row {row}. Rename the object and its file."
                )
    return found


def _path(piece: _Piece, words: Mapping[str, StringArray], row: int, folder: Path) -> Path:
    return folder / PLACEHOLDER.sub(lambda match: words[match[1]][row], piece.path)


def _read(paths: Mapping[_Piece, Path]) -> Iterator[tuple[_Piece, RawColumn]]:
    """Images of the files that are there, with their units; a file is opened once."""
    wanted = defaultdict(list)
    for piece, path in paths.items():
        wanted[path].append(piece)
    for path, pieces in wanted.items():
        if os.path.isfile(path):  # False, too, for a name that the system cannot hold
            with opened(path) as hdus:
                for piece in pieces:
                    yield piece, _plane(hdus, piece, path)


def _plane(hdus: Any, piece: _Piece, path: Path) -> RawColumn:  # noqa: ANN401 - an HDUList, which astropy does not type
    """One extension, or the planes of it that its header calls BANDn."""
    images = {number: hdu for number, hdu in enumerate(hdus) if hdu.is_image and len(hdu.shape) > 1}
    asked = piece.extension.lower()
    found = [hdu for number, hdu in images.items() if asked in ("", str(number), hdu.name.lower())]
    if not found:
        raise DataError(
            f"Expected an image{f' {piece.extension!r}' if asked else ''} in {path}; got "
            f"{[hdu.name or number for number, hdu in images.items()]}. Name another extension in brackets, or move "
            "the file away: what is not there is unseen."
        )
    header, data = found[0].header, found[0].data
    while data.ndim > 3 and len(data) == 1:
        data = data[0]
    if data.ndim > 3:
        raise DataError(f"Expected images of shape (bands, H, W) in {path}; got {data.shape}. Cut them.")
    if piece.bands:
        data = data.reshape(-1, *data.shape[-2:])
        known = [str(header.get(f"BAND{number}", "")).strip() for number in range(len(data))]
        missing = [band for band in piece.bands if band not in known]
        if missing:
            raise DataError(
                f"Expected the bands {', '.join(piece.bands)} in {path}; got {known} (BAND0, BAND1, …). Name bands as "
                "the header spells them, or leave out the second brackets."
            )
        data = data[[known.index(band) for band in piece.bands]]
    return RawColumn(np.asarray(data), header.get("BUNIT") or None)


def _stacked(
    files: _Files, found: Mapping[_Piece, RawColumn], paths: Mapping[_Piece, Path], spec: ModalitySpec, *, every: bool
) -> RawColumn:
    """The images of one object as a column of one row, NaN where a file is missing."""
    bands, height, width = spec.shape if len(spec.shape) == 3 else (1, *spec.shape)
    shape = (bands // len(files.pieces), height, width)
    planes: list[NDArray[Any]] = []
    for piece in files.pieces:
        if piece not in found:
            planes.append(np.full((1, *shape), np.nan))
            continue
        plane = pictures(found[piece].values[None], shape, str(paths[piece]), every=every)
        if plane.shape[1] != shape[0]:
            raise DataError(
                f"Expected images of {shape[0]} bands in {paths[piece]} ('{spec.name}'); got {plane.shape[1]}. "
                "List bands in brackets, or change the shape."
            )
        planes.append(plane)
    units = {found[piece].unit for piece in files.pieces if piece in found}
    if len(units) > 1:
        raise DataError(
            f"Expected one unit in all bands of {paths[files.pieces[0]]} and the files with it; got "
            f"{sorted(map(str, units))}. Mend BUNIT."
        )
    values = np.concatenate(planes, axis=1, dtype=np.float64).reshape(1, *spec.shape)
    if files.negated:  # NaN: nobody says that the pixel may be used
        values = (~(values > 0)).astype(np.float64)
    return RawColumn(values, units.pop() if units else None)


def _checked(table: RawTable, schema: Schema) -> Modality:
    """The modality of a table of one row; an error names its file."""
    try:
        return parts_of(table, schema)[schema.names[0]]
    except DataError as error:
        if table.source in str(error):
            raise
        raise DataError(f"{table.source}: {error}") from error


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(","))

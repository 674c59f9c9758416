"""From galaxies and what lies beside them to light and images, by any camera, chunk by chunk in several processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from scipy.ndimage import uniform_filter

from consilience.data.observations import Modality, Observations
from consilience.data.schema import Cell, Grid, ModalitySpec, Schema
from consilience.simulators.galaxy_images import Sources, images
from consilience.simulators.galaxy_population import Stars
from consilience.simulators.galaxy_spectra import Light, light
from consilience.simulators.galaxy_structure import Shapes, in_fibre, sources
from consilience.typing import FloatArray

__all__ = ["CHUNK", "Camera", "exposed", "mapped", "observed", "tabled", "together"]

CHUNK = 16  # galaxies made at a time
Part = TypeVar("Part")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Camera:
    """Bands of photometry, and how three of them become images.

    Arguments:
        bands: Half-power wavelengths in Angstrom, by name.
        imaged: Positions of the three among them.
        centres: Wavelengths of the three, Angstrom.
        pixel: Side in arcsec.
        gain: Electrons per nanomaggy in each of the three.
        sky: Nanomaggies per pixel in each.
    """

    bands: Mapping[str, tuple[float, float]]
    imaged: tuple[int, int, int]
    centres: tuple[float, float, float]
    pixel: float
    gain: tuple[float, float, float]
    sky: tuple[float, float, float]

    def photometry(self, name: str, cell: str) -> ModalitySpec:
        """A modality of fluxes in all bands, of cells CELL_BAND."""
        # fluxes range over a factor of a hundred from galaxy to galaxy, hence asinh
        cells = tuple(Cell(name=f"{cell}_{band.lower()}") for band in self.bands)
        return ModalitySpec(name=name, cells=cells, axis="band", unit="nmgy", ucd="phot.flux", scale="asinh")

    def images(self, pixels: int) -> tuple[ModalitySpec, ModalitySpec]:
        """The modalities of its images and of their seeing."""
        image = ModalitySpec(name="image", shape=(3, pixels, pixels), unit="nmgy", ucd="phot.flux", scale="asinh")
        cell = Cell(name="seeing", unit="arcsec", ucd="instr.obsty.seeing")
        return image, ModalitySpec(name="seeing", cells=(cell,))


@dataclass(frozen=True, slots=True)
class _Scenes:
    """A chunk of galaxies and all that is on their images."""

    stars: Stars
    shapes: Shapes
    beside: Sources


def observed(
    galaxies: tuple[Stars, Shapes, Sources], camera: Camera, grid: Grid | None, pixels: int | None, workers: int
) -> Iterator[tuple[slice, Light, FloatArray | None]]:
    """Light of galaxies, of spectra what the fibre takes, and their images without noise, chunk by chunk.

    Arguments:
        galaxies: Stars and shapes of N galaxies, and neighbours on their images.
        camera: That takes them.
        grid: Bins of the spectra; None for none.
        pixels: Of an image's side; None for no images.
        workers: Processes.
    """
    stars, shapes, beside = galaxies
    chunks = [slice(start, min(start + CHUNK, len(stars))) for start in range(0, len(stars), CHUNK)]
    scenes = [_Scenes(stars[rows], shapes[rows], _within(beside, rows)) for rows in chunks]
    made = mapped(partial(_seen, camera=camera, grid=grid, pixels=pixels), scenes, workers)
    for rows, (part, model) in zip(chunks, made, strict=True):
        yield rows, part, model


def exposed(model: FloatArray, camera: Camera, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Poisson counts of images (N, 3, P, P) and their sky, and their error bars, in nanomaggies."""
    gain, sky = (np.array(part)[:, None, None] for part in (camera.gain, camera.sky))
    electrons = rng.poisson(gain * (model + sky)).astype(float)
    # each pixel's own count would weigh low ones more, which adds up over an image
    near = uniform_filter(electrons, size=3, mode="nearest", axes=(2, 3))
    return electrons / gain - sky, np.sqrt(near) / gain


def together(lights: Sequence[Light]) -> Light:
    """Light of all chunks."""
    return Light(*(np.concatenate([getattr(part, f.name) for part in lights]) for f in fields(Light)))


def tabled(
    schema: Schema,
    values: Mapping[str, FloatArray],
    errors: Mapping[str, FloatArray],
    ids: Sequence[str],
    image: Modality | None,
) -> Observations:
    """Observations of these values and error bars, with images as they are.

    Arguments:
        schema: Of everything, with ``image`` where there is one.
        values: By modality, NaN where there is none; also of modalities that the schema does not have.
        errors: Error bars of some of them.
        ids: Of the rows.
        image: The images; ``Observations.from_arrays`` would copy them to double precision four times over.
    """
    others = schema.select(name for name in schema.names if name != "image")
    table = Observations.from_arrays(others, {name: values[name] for name in others.names}, sigma=errors, ids=ids)
    if image is None:
        return table
    return replace(table, schema=schema, parts={name: table.parts.get(name, image) for name in schema.names})


def mapped(function: Callable[[Part], Answer], parts: Sequence[Part], workers: int) -> Iterator[Answer]:
    """What the function makes of each part, in order, in several processes."""
    if workers == 1:
        yield from map(function, parts)
        return
    # a fork would copy the threads' locks of whoever calls
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, parts)


def _seen(scenes: _Scenes, camera: Camera, grid: Grid | None, pixels: int | None) -> tuple[Light, FloatArray | None]:
    found, shapes = light(scenes.stars, grid, camera.bands), scenes.shapes
    if grid:
        found = replace(found, spectrum=found.spectrum * in_fibre(shapes, grid.centres()))
    if not pixels:
        return found, None
    own, beside = sources(shapes, found.photometry[:, camera.imaged], camera.centres), scenes.beside
    every = Sources(*(np.concatenate([getattr(part, f.name) for part in (own, beside)]) for f in fields(Sources)))
    return found, images(every[np.argsort(every.owner, kind="stable")], shapes.seeing, pixels, camera.pixel)


def _within(beside: Sources, rows: slice) -> Sources:
    found = beside[(beside.owner >= rows.start) & (beside.owner < rows.stop)]
    return replace(found, owner=found.owner - rows.start)

"""Hyperspectral cubes: scenes in NPY, NPZ and FITS files, and the table of their patches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from numpy.lib.stride_tricks import sliding_window_view

from consilience.data.observations import Observations
from consilience.data.schema import Grid, ModalitySpec, Schema, nearest
from consilience.errors import DataError, RequestError
from consilience.io.npz import DAMAGE
from consilience.io.raw import guarded
from consilience.io.spectra import opened
from consilience.typing import FloatArray, IntArray, PathOrStr

__all__ = ["VISIBLE", "Cube", "patches", "read_cube"]

Window = tuple[float, float]
Found = dict[str, tuple[FloatArray, FloatArray | None]]  # arrays by name, each with its wavelengths

VISIBLE: tuple[Window, Window, Window] = ((600.0, 700.0), (500.0, 600.0), (400.0, 500.0))  # nm: red, green, blue
EVEN = 1e-3  # of a step: bands that lie no further from equal spacing have a grid


@dataclass(frozen=True, slots=True)
class Cube:
    r"""A scene :math:`x(u, \lambda)`: the brightness of every pixel in every band, and maps of the same pixels.

    Arguments:
        value: Shape (H, W, bands).
        wavelength: Centres of the bands in nm, increasing, shape (bands,).
        maps: What else is known of every pixel, such as abundances, shape (H, W, K) by name.
        source: Where it comes from, for messages.

    Raises:
        DataError: another rank or shape, cells that are not finite numbers, or wavelengths that do not increase.

    Example:
        >>> Cube(np.ones((4, 5, 3)), np.array([450.0, 550.0, 650.0])).value.shape
        (4, 5, 3)
    """

    value: FloatArray
    wavelength: FloatArray
    maps: Mapping[str, FloatArray] = field(default_factory=dict)
    source: str = "memory"

    def __post_init__(self) -> None:
        for name, array in {"cube": self.value, **self.maps}.items():
            if array.ndim != 3 or array.shape[:2] != self.value.shape[:2] or not array.size:
                raise DataError(
                    f"Expected three axes (height, width, bands) of '{name}' in {self.source}, and the pixels of the "
                    f"cube in every map; got shape {array.shape}. Name another array, or move its axes."
                )
            if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                wrong = "NaN or infinity" if array.dtype.kind == "f" else f"the type {array.dtype}"
                raise DataError(f"Expected finite numbers in '{name}' of {self.source}; got {wrong}. Cut or fill them.")
        order = "in" if (np.diff(self.wavelength) > 0).all() else "not in"
        if self.wavelength.shape != self.value.shape[2:] or order != "in":
            raise DataError(
                f"Expected a wavelength for each of {self.value.shape[2]} bands of {self.source}, in increasing order; "
                f"got shape {self.wavelength.shape}, {order} order. Sort the bands, or give `wavelength`."
            )


def read_cube(
    path: PathOrStr, *, array: str | None = None, wavelength: Window | None = None, maps: Sequence[str] = ()
) -> Cube:
    """The cube in an NPY, NPZ or FITS file; nothing in it is executed.

    Arrays of NPY and NPZ have the axes (height, width, bands), images of FITS theirs (bands first). Wavelengths are the
    array ``wavelength`` of an archive, in nm, or the spectral axis of an image (CTYPE3 WAVE or AWAV).

    Arguments:
        path: The file.
        array: Array of the archive, or extension of the FITS file; the only one with three axes by default.
        wavelength: Centres in nm of the first and the last of equally spaced bands, instead of what the file says.
        maps: Arrays or extensions with what else is known of every pixel, (H, W) or (H, W, K).

    Raises:
        DataError: the file is missing, damaged, of another suffix, or holds pickled objects; an array is not there, of
            another rank or not finite; or nothing says the wavelengths.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.ones((4, 5, 3)))
        ...     read_cube(f"{folder}/a.npy", wavelength=(450, 650)).wavelength
        array([450., 550., 650.])
    """
    path = Path(path)
    read = next((READERS[end] for end in READERS if path.name.lower().endswith(end)), None)
    if read is None:
        raise DataError(f"Expected a cube in a file that ends in one of {', '.join(READERS)}; got {path}. Convert it.")
    if not path.is_file():
        raise DataError(f"Expected a file at {path}; got none. Check the path.")
    found = read(path)
    cubes = [name for name, (one, _) in found.items() if one.ndim == 3]
    if array is None and len(cubes) != 1:
        raise DataError(f"Expected one array with three axes in {path}; got {cubes}. Say which with `array`.")
    chosen = cubes[0] if array is None else array
    for name in (chosen, *maps):
        if name not in found:
            raise DataError(f"Expected {name!r} among {list(found)} in {path}; got none.{nearest(name, found)}")
    value, centres = found[chosen]
    if wavelength is not None and value.ndim:
        centres = np.linspace(*wavelength, value.shape[-1])
    if centres is None:
        raise DataError(f"Expected the wavelengths of {chosen!r} in {path}; got none. Give `wavelength`.")
    planes = {name: found[name][0] for name in maps}
    known = {name: plane[..., None] if plane.ndim == 2 else plane for name, plane in planes.items()}
    return Cube(value, centres, known, str(path))


def patches(
    cube: Cube, *, size: int, stride: int, blocks: int = 5, colours: tuple[Window, Window, Window] = VISIBLE
) -> Observations:
    r"""Square patches of a scene as rows: each as a colour image, as a spectrum, and whole.

    .. math::
        \mathrm{rgb}_c(v) = \langle x(v, \lambda) \rangle_{\lambda \in c}, \qquad
        \mathrm{spectrum}(\lambda) = \langle x(v, \lambda) \rangle_{v}, \qquad v \in \text{patch}

    **Modalities.** ``rgb`` (3, p, p), ``spectrum`` (bands,), ``cube`` (bands, p, p), and (K, p, p) of every map. The
    scene is cut into blocks x blocks rectangles, which are the groups of the rows: no patch crosses the border of
    two, so ``split(…, by="group")`` keeps whole stretches of the scene from training.

    Arguments:
        cube: The scene.
        size: Pixels of a patch's side, p.
        stride: Pixels from one patch to the next.
        blocks: Rectangles along each side of the scene.
        colours: First and last wavelength of red, green and blue in nm.

    Raises:
        RequestError: patches larger than a block, or sizes below one.
        DataError: no band within a colour, or a map called like another modality.

    Example:
        >>> scene = Cube(np.random.default_rng(0).random((20, 20, 8)), np.linspace(400, 700, 8))
        >>> table = patches(scene, size=4, stride=2, blocks=2)
        >>> len(table), table.parts["rgb"].value.shape, len(set(table.group))
        (64, (64, 3, 4, 4), 4)
    """
    height, width, _ = cube.value.shape
    if min(size, stride, blocks) < 1 or size * blocks > min(height, width):
        raise RequestError(
            f"Expected patches of at most {min(height, width)} // blocks pixels, and sizes of 1 or more; got size "
            f"{size}, stride {stride} and {blocks} blocks. Take smaller patches or fewer blocks."
        )
    taken = {"rgb", "spectrum", "cube"} & set(cube.maps)
    if taken:
        raise DataError(f"Expected maps not called rgb, spectrum or cube in {cube.source}; got {sorted(taken)}.")
    inside = [(cube.wavelength >= low) & (cube.wavelength <= high) for low, high in colours]
    if not all(window.any() for window in inside):
        raise DataError(
            f"Expected bands in each of the colours {colours} nm; got {cube.wavelength[0]:g} to "
            f"{cube.wavelength[-1]:g} nm in {cube.source}. Give `colours`."
        )
    rgb = np.stack([cube.value[..., window].mean(-1) for window in inside], -1)
    (down, row), (right, column) = (_corners(pixels, size, stride, blocks) for pixels in (height, width))

    def cut(array: FloatArray) -> FloatArray:
        """Patches (N, K, p, p) of an array (H, W, K)."""
        windows = sliding_window_view(array, (size, size), axis=(0, 1))
        return windows[np.ix_(down, right)].reshape(-1, *windows.shape[2:])

    values = {"rgb": cut(rgb), "cube": cut(cube.value), **{name: cut(plane) for name, plane in cube.maps.items()}}
    values["spectrum"] = values["cube"].mean((2, 3), dtype=np.float64)
    specs = {name: ModalitySpec(name=name, shape=value.shape[1:]) for name, value in values.items()}
    specs["spectrum"] = _spectrum(cube.wavelength)
    names = ("rgb", "spectrum", "cube", *cube.maps)
    schema = Schema(id="patch", group="block", modalities=tuple(specs[name] for name in names))
    return Observations.from_arrays(
        schema,
        values,
        ids=[f"{y}-{x}" for y in down for x in right],
        group=[f"{y}-{x}" for y in row for x in column],
    )


def _corners(pixels: int, size: int, stride: int, blocks: int) -> tuple[IntArray, IntArray]:
    """Where patches begin along one side of the scene, and the number of the block that each lies in."""
    edges = np.arange(blocks + 1) * pixels // blocks
    starts = [np.arange(begin, end - size + 1, stride) for begin, end in zip(edges[:-1], edges[1:], strict=True)]
    return np.concatenate(starts), np.repeat(np.arange(blocks), [len(some) for some in starts])


def _spectrum(wavelength: FloatArray) -> ModalitySpec:
    """The modality of mean spectra, on a grid where the bands are equally spaced."""
    line = np.linspace(wavelength[0], wavelength[-1], len(wavelength))
    if len(line) < 2 or np.abs(wavelength - line).max() > EVEN * (line[1] - line[0]):
        return ModalitySpec(name="spectrum", shape=line.shape, axis="wavelength")
    grid = Grid(start=float(line[0]), stop=float(line[-1]), size=len(line), unit="nm")
    return ModalitySpec(name="spectrum", grid=grid)


def _read_numpy(path: Path) -> Found:
    with guarded(path, "NPY or NPZ", DAMAGE), path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"cube": (content, None)}
        with content:
            arrays = {name: content[name] for name in content.files}
        centres = np.asarray(arrays["wavelength"], dtype=np.float64) if "wavelength" in arrays else None
    return {name: (array, centres) for name, array in arrays.items()}


def _read_images(path: Path) -> Found:
    found: Found = {}
    with opened(path) as hdus:
        for number, hdu in enumerate(hdus):
            if hdu.is_image and hdu.data is not None:
                axis, data = WCS(hdu.header).spectral, hdu.data
                waves = axis.naxis == 1 and axis.wcs.ctype[0][:4] in ("WAVE", "AWAV")
                centres = 1e9 * axis.all_pix2world(np.arange(len(data)), 0)[0] if waves else None  # from metres
                found[hdu.name or str(number)] = np.moveaxis(data, 0, -1) if data.ndim == 3 else data, centres
    return found


READERS: Mapping[str, Callable[[Path], Found]] = {
    ".npz": _read_numpy,
    ".npy": _read_numpy,
    ".fits": _read_images,
    ".fits.gz": _read_images,
    ".fit": _read_images,
}

"""The forward model, the prior and the sampler of ``sed_fitting``, all three bagpipes' own.

One table states the prior. Galaxies are drawn from it, and bagpipes is told it word for word. Filter curves are files
that both its ``model_galaxy`` and its ``fit`` read, so that both make the same fluxes of the same parameters.

Errors have a floor of a share of the measured flux, as fits of photometry usually have: σ(x)² = depth² + (floor x)².
bagpipes takes p(x | f) = N(x; f, σ(x)²). So fluxes are drawn from this density of x, by its distribution function on a
grid, and not by σ(f), of which the error bars would tell. What is then left of the difference is its normalisation,
which depends on f by less than floor², .25 %.
"""

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import erf, ndtr, ndtri

from benchmarks._harness import say
from consilience.data.schema import Frozen
from consilience.simulators.galaxy_spectra import bagpipes
from consilience.simulators.sdss import CAMERA, DEPTHS
from consilience.typing import FloatArray

__all__ = ["FLOOR", "PARAMETERS", "Galaxies", "Parameter", "derived", "fitted", "from_normal", "simulated", "to_normal"]

MICROJANSKY = 3.631  # in a nanomaggy
FLOOR = 0.05  # least error, of the measured flux
SCATTER = 0.3  # dex, of the depth of each measurement
BLUR = 0.02  # of the edges of bands, of their wavelength
REACH = np.linspace(-8, 8, 641)  # of noise, in error bars
LEAST = 1e-6  # distance from the prior's edges, on which draws of which six digits are kept may lie
PHYSICS = {
    "delayed": {},
    "dust": {"type": "Calzetti", "eta": 2.0},
    "nebular": {"logU": -3.0},
}


class Parameter(Frozen):
    """A number that is fitted, and its prior: uniform between two limits, of its logarithm where ``log``."""

    name: str
    unit: str
    place: str  # in the terms of bagpipes
    low: float
    high: float
    log: bool = False


PARAMETERS = (  # the universe is older than any age at all of these redshifts
    Parameter(name="log_formed", unit="dex(Msun)", place="delayed:massformed", low=9.0, high=12.0),
    Parameter(name="redshift", unit="", place="redshift", low=0.02, high=0.3),
    Parameter(name="age", unit="Gyr", place="delayed:age", low=1.0, high=10.0),
    Parameter(name="tau", unit="Gyr", place="delayed:tau", low=0.3, high=10.0, log=True),
    Parameter(name="metallicity", unit="Zsun", place="delayed:metallicity", low=0.1, high=2.5, log=True),
    Parameter(name="a_v", unit="mag", place="dust:Av", low=0.0, high=2.0),
)


@dataclass(frozen=True, slots=True)
class Galaxies:
    """N galaxies: their parameters (N, 6), fluxes and error bars in nanomaggies (N, 5)."""

    parameters: FloatArray
    flux: FloatArray
    error: FloatArray


def to_normal(parameters: FloatArray) -> FloatArray:
    """Parameters (…, 6) as numbers that are standard normal a priori."""
    share = np.stack([_share(one, parameters[..., column]) for column, one in enumerate(PARAMETERS)], axis=-1)
    return ndtri(np.clip(share, LEAST, 1 - LEAST))


def from_normal(value: FloatArray) -> FloatArray:
    """The parameters (…, 6) again: never outside the prior."""
    share = ndtr(value)
    return np.stack([_value(one, share[..., column]) for column, one in enumerate(PARAMETERS)], axis=-1)


def simulated(n: int, rng: np.random.Generator) -> Galaxies:
    """Galaxies of the prior, some 3 ms each."""
    share = rng.random((n, len(PARAMETERS)))
    parameters = np.stack([_value(one, share[:, column]) for column, one in enumerate(PARAMETERS)], axis=1)
    depth = DEPTHS * 10 ** (SCATTER * rng.standard_normal((n, len(CAMERA.bands))))
    model, flux = _model(), np.empty_like(depth)
    for row in range(n):
        model.update(_components(parameters[row]))
        flux[row] = measured(model.photometry / MICROJANSKY, depth[row], rng)
    return Galaxies(parameters, flux, np.hypot(depth, FLOOR * flux))


def measured(flux: FloatArray, depth: FloatArray, rng: np.random.Generator) -> FloatArray:
    """What is measured of true fluxes (B,): drawn from N(x; f, σ(x)²) as a density of x."""
    x = flux[:, None] + np.hypot(depth, FLOOR * flux)[:, None] * REACH
    sigma = np.hypot(depth[:, None], FLOOR * x)
    below = np.cumsum(np.exp(-0.5 * ((x - flux[:, None]) / sigma) ** 2) / sigma, axis=1)
    share = rng.random(len(flux)) * below[:, -1]
    return np.array([np.interp(*one) for one in zip(share, below, x, strict=True)])


def fitted(galaxies: Galaxies, row: int, live: int | None) -> dict[str, FloatArray | float]:
    """bagpipes' posterior draws (S, 6) of one of them, the seconds that it took, and those of its thread.

    ``density`` is the logarithm of the posterior density of the true parameters as normals, by the evidence that the
    sampler finds.

    Arguments:
        galaxies: Of which it gets fluxes and error bars.
        row: Which.
        live: Live points of nautilus instead of bagpipes' own number.
    """
    pipes = bagpipes()
    data = MICROJANSKY * np.stack([galaxies.flux[row], galaxies.error[row]], axis=1)
    with _workplace() as curves:
        galaxy = pipes.galaxy(f"G{row}", lambda _: data, spectrum_exists=False, filt_list=curves)
        begun, worked = time.perf_counter(), time.process_time()
        fit = pipes.fit(galaxy, _instructions())
        fit.fit(sampler="nautilus", **({} if live is None else {"n_live": live}))
        seconds, busy = time.perf_counter() - begun, time.process_time() - worked
        true = dict(zip((one.place for one in PARAMETERS), galaxies.parameters[row], strict=True))
        likelihood = fit.fitted_model.lnlike([true[place] for place in fit.fitted_model.params])
    density = likelihood - fit.results["lnz"] + stats.norm.logpdf(to_normal(galaxies.parameters[row])).sum()
    draws = np.stack([fit.posterior.samples[one.place] for one in PARAMETERS], axis=1)
    say(f"galaxy {row}: {seconds:.0f} s, {busy:.0f} s of its thread, {len(np.unique(draws, axis=0))} distinct draws")
    return {"draws": draws, "seconds": seconds, "busy": busy, "density": density}


def derived(parameters: FloatArray) -> FloatArray:
    """log of the mass of living stars in M_sun and of the star formation of 100 Myr in M_sun / yr, (…, 2)."""
    bagpipes()
    from bagpipes.models.star_formation_history import star_formation_history

    rows = parameters.reshape(-1, len(PARAMETERS))
    history, found = star_formation_history(_components(rows[0])), np.empty((len(rows), 2))
    for row, one in enumerate(rows):
        history.update(_components(one))
        found[row] = history.stellar_mass, np.log10(history.sfr)
    return found.reshape(*parameters.shape[:-1], 2)


def _share(parameter: Parameter, value: FloatArray) -> FloatArray:
    low, high = parameter.low, parameter.high
    if parameter.log:
        return np.log(value / low) / np.log(high / low)
    return (value - low) / (high - low)


def _value(parameter: Parameter, share: FloatArray) -> FloatArray:
    low, high = parameter.low, parameter.high
    return low * (high / low) ** share if parameter.log else low + (high - low) * share


def _components(values: FloatArray) -> dict[str, Any]:
    """A galaxy in the terms of bagpipes."""
    return _laid_out({one.place: float(value) for one, value in zip(PARAMETERS, values, strict=True)})


def _instructions() -> dict[str, Any]:
    """The prior in the terms of bagpipes."""
    limits: dict[str, Any] = {one.place: (one.low, one.high) for one in PARAMETERS}
    return _laid_out(limits | {f"{one.place}_prior": "log_10" if one.log else "uniform" for one in PARAMETERS})


def _laid_out(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: dict(part) for name, part in PHYSICS.items()}
    for place, value in values.items():
        *part, name = place.split(":")
        (found[part[0]] if part else found)[name] = value
    return found


@cache
def _model() -> Any:  # noqa: ANN401 - bagpipes' own class
    with _workplace() as curves:
        middle = from_normal(np.zeros(len(PARAMETERS)))
        return bagpipes().model_galaxy(_components(middle), filt_list=curves, phot_units="mujy")


@contextlib.contextmanager
def _workplace() -> Iterator[list[str]]:
    """A folder with the filters' curves for bagpipes to write in, and silence."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        bagpipes().utils.working_dir = folder  # it remembers where it was imported
        yield [_curve(Path(folder) / f"{band}.txt", *edges) for band, edges in CAMERA.bands.items()]


def _curve(path: Path, low: float, high: float) -> str:
    wavelength = np.geomspace((1 - 3 * BLUR) * low, (1 + 3 * BLUR) * high, 400)
    through = 0.5 * (erf(np.log(wavelength / low) / BLUR) - erf(np.log(wavelength / high) / BLUR))
    np.savetxt(path, np.stack([wavelength, through], axis=1))
    return str(path)

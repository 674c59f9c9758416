"""Spectra generated from labels, measured as an observer would: the Baldwin effect and the virial widths.

The truth is measured in the same way on what the simulator makes of the same labels, scatter and dust included.

References:
    | Baldwin 1977, ApJ 214, 679: equivalent widths fall with luminosity
    | Vestergaard & Peterson 2006, ApJ 641, 689: widths of broad lines rise with mass at fixed luminosity
"""

import numpy as np

from consilience import plots
from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.predict.fitted import Fitted
from consilience.simulators.quasar_lines import LOG_EDDINGTON
from consilience.simulators.quasar_spectra import GRID, PIVOT_EDDINGTON, physics, spectra
from consilience.simulators.quasars import MEAN_REDDENING, MEAN_SLOPE
from consilience.typing import FloatArray

__all__ = ["equivalent_width", "half_width", "quasar_trends"]

LUMINOSITIES = np.linspace(45.8, 47.0, 7)  # at the mean Eddington ratio, dex(erg/s)
MASSES = np.linspace(8.4, 9.6, 7)  # at log L_bol = 46.4, dex(Msun)
LABEL_ERROR = 0.02  # dex, of the labels that the model is given
# The line, and two windows without lines through which its continuum is drawn, Angstrom
CIV = (1500.0, 1600.0), ((1445.0, 1465.0), (1690.0, 1710.0))
MGII = (2740.0, 2860.0), ((2640.0, 2660.0), (3010.0, 3030.0))
HBETA = (4780.0, 4930.0), ((4740.0, 4760.0), (5020.0, 5040.0))
Windows = tuple[tuple[float, float], tuple[tuple[float, float], tuple[float, float]]]


def quasar_trends(
    fitted: Fitted, schema: Schema, *, draws: int, seed: int = 0
) -> tuple[dict[str, float], "plots.Figure"]:
    """Slopes of log EW(C IV) with log L and of log FWHM with log M, of the model and of the truth, and a figure.

    Arguments:
        fitted: A model of "spectrum" and "labels".
        schema: Of the simulated table, both modalities.
        draws: Spectra per point of the grid.
        seed: Of the draws.
    """
    light = _mean_spectra(fitted, schema, LUMINOSITIES, LUMINOSITIES - PIVOT_EDDINGTON - LOG_EDDINGTON, draws, seed)
    heavy = _mean_spectra(fitted, schema, np.full(len(MASSES), 46.4), MASSES, draws, seed)
    truth, found = (
        {
            "civ": equivalent_width(bright, CIV),
            "Mg II": half_width(massive, MGII),
            "H beta": half_width(massive, HBETA),
        }
        for bright, massive in zip(light, heavy, strict=True)
    )
    numbers = {}
    for key, x, name in (
        ("baldwin_slope", LUMINOSITIES, "civ"),
        ("virial_slope_mgii", MASSES, "Mg II"),
        ("virial_slope_hbeta", MASSES, "H beta"),
    ):
        for who, values in (("true", truth), ("model", found)):
            numbers[f"{key}_{who}"] = float(np.polyfit(x, np.log10(values[name]), 1)[0])
    near = (GRID.centres() > 1430) & (GRID.centres() < 1720)
    some = (0, len(LUMINOSITIES) // 2, len(LUMINOSITIES) - 1)
    names = [f"log L {LUMINOSITIES[k]:.1f}" for k in some]
    figure = plots.trends(
        [
            plots.Trend(
                GRID.centres()[near],
                {name: light[0][k, near] for name, k in zip(names, some, strict=True)},
                {name: light[1][k, near] for name, k in zip(names, some, strict=True)},
                plots.Labels("rest wavelength", "flux", "C IV generated from labels", "Angstrom"),
            ),
            plots.Trend(
                LUMINOSITIES, {"C IV": truth["civ"]}, {"C IV": found["civ"]},
                plots.Labels("log L_bol", "equivalent width", "Baldwin effect", "dex(erg/s)", "Angstrom"), log=True,
            ),
            plots.Trend(
                MASSES,
                {name: truth[name] for name in ("Mg II", "H beta")},
                {name: found[name] for name in ("Mg II", "H beta")},
                plots.Labels("log M_BH at log L_bol 46.4", "FWHM", "Virial widths", "dex(Msun)", "km/s"), log=True,
            ),
        ]
    )  # fmt: skip
    return numbers, figure


def equivalent_width(spectra: FloatArray, windows: Windows) -> FloatArray:
    """∫ (f / continuum - 1) dλ over the line, Angstrom, of spectra (N, 590), shape (N,).

    Example:
        >>> equivalent_width(np.ones((1, 590)), CIV).round(6).tolist()
        [0.0]
    """
    ratio, inside = _over_continuum(spectra, windows)
    wavelength = GRID.centres()
    return np.asarray(np.trapezoid((ratio - 1)[:, inside], wavelength[inside], axis=1))


def half_width(spectra: FloatArray, windows: Windows) -> FloatArray:
    """Full width of the line at half its height above the continuum, km/s, shape (N,).

    The width of a line that nowhere rises above its continuum is NaN.
    """
    ratio, inside = _over_continuum(spectra, windows)
    velocity = 299792.458 * np.log(GRID.centres()[inside])
    found = []
    for profile in ratio[:, inside] - 1:
        fine = np.linspace(velocity[0], velocity[-1], 4000)
        height = np.interp(fine, velocity, profile)
        above = fine[height > 0.5 * height.max()] if height.max() > 0 else np.array([np.nan])
        found.append(above[-1] - above[0] if len(above) > 1 else np.nan)
    return np.array(found)


def _over_continuum(spectra: FloatArray, windows: Windows) -> tuple[FloatArray, np.ndarray]:
    (low, high), sides = windows
    wavelength = GRID.centres()
    middle = [0.5 * sum(side) for side in sides]
    level = np.stack([spectra[:, (wavelength > a) & (wavelength < b)].mean(axis=1) for a, b in sides], axis=1)
    slope = (level[:, 1] - level[:, 0]) / (middle[1] - middle[0])
    continuum = level[:, :1] + slope[:, None] * (wavelength - middle[0])
    return spectra / continuum, (wavelength > low) & (wavelength < high)


def _mean_spectra(
    fitted: Fitted, schema: Schema, luminosity: FloatArray, mass: FloatArray, draws: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Mean spectra of quasars with these labels, (L, 590): the simulator's and the model's."""
    eddington = luminosity - mass - LOG_EDDINGTON
    slope = MEAN_SLOPE - 0.1 * (eddington - PIVOT_EDDINGTON)
    rng = np.random.default_rng(seed)
    l_many, m_many, slopes = (np.repeat(array, draws) for array in (luminosity, mass, slope))
    dust = rng.exponential(MEAN_REDDENING, len(slopes))
    many = spectra(physics(l_many, m_many, slopes, dust, rng.standard_normal))
    true = many.reshape(len(mass), draws, -1).mean(axis=1)
    labels = np.stack([luminosity, mass, eddington, slope], axis=1)
    blank = np.full((len(mass), GRID.size), np.nan)
    given = Observations.from_arrays(
        schema, {"spectrum": blank, "labels": labels}, sigma={"labels": np.full(labels.shape, LABEL_ERROR)}
    )
    drawn = fitted.summarise(given, ["spectrum"], statistics=("mean",), n=draws, seed=seed)
    return true, drawn.statistics["spectrum"]["mean"]

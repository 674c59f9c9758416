r"""Simulated quasars as a survey sees them: rest-frame spectra with gaps and error bars, and catalogue labels.

**Population.** log L_bol ~ N(46.4, 0.5) within 45.2 … 47.6; log L/L_Edd ~ N(-0.7, 0.35) within -2 … 0.5 (Kelly &
Shen 2013; Shen et al. 2011), and M_BH follows from both; α ~ N(-1.55 - 0.1 (log L/L_Edd + 0.7), 0.25);
E(B - V) exponential with mean 0.015 mag. What follows from these, with scatter:
:mod:`consilience.simulators.quasar_spectra`.

**Choices that matter to whoever trains on the table.**

- Redshifts are uniform in 0.4 … 3.0 and *independent* of the labels, as in a sample matched in L and z, and so is
  the signal-to-noise. The survey's window is a function of redshift: were redshift correlated with luminosity, as
  in a flux-limited sample, the pattern of gaps alone would tell the labels.
- Fluxes are divided by the true reddened power law at 3000 Å, not by an estimate from noisy pixels: so
  (spectrum - true_spectrum) / sigma is exactly N(0, 1). Luminosity can be learned from the shape alone.
- Error bars are those of a sky-limited spectrograph: they depend on redshift, wavelength and the object's
  signal-to-noise, never on its own flux. Were they computed from the true flux they would leak it.
- The four labels are perturbed *independently*. A catalogue that derives log_edd from its own L and M has
  correlated errors there, which one standard error per cell cannot express.
- The rest frame is that of the true redshift; ``redshift`` is measured to 0.001, below a pixel.

References:
    Kelly & Shen 2013, ApJ 764, 45; Shen et al. 2011, ApJS 194, 45; and those of ``quasar_lines``.
"""

import numpy as np
from scipy.special import ndtr, ndtri

from consilience.data.observations import Observations
from consilience.data.schema import Cell, ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.simulators.quasar_lines import LOG_EDDINGTON
from consilience.simulators.quasar_spectra import GRID, PIVOT_EDDINGTON, physics, spectra
from consilience.typing import BoolArray, FloatArray

__all__ = ["quasars", "quasars_at"]

WINDOW = (3800.0, 9200.0)  # observed Angstrom that the spectrograph covers (SDSS; York et al. 2000, AJ 120, 1579)
# Observed Angstrom that every pipeline discards: the strongest night-sky lines and the telluric oxygen bands.
BAD_BANDS = ((5572.0, 5584.0), (6296.0, 6304.0), (6865.0, 6935.0), (7590.0, 7700.0))
REDSHIFTS = (0.4, 3.0)
REDSHIFT_ERROR = 1e-3
MEAN_SLOPE = -1.55  # Vanden Berk et al. 2001: alpha_nu = -0.44, alpha_lambda = -2 - alpha_nu
MEAN_REDDENING = 0.015  # mag, the mean of an exponential; most quasars have less (Richards et al. 2003; Hopkins 2004)
SIGNAL_TO_NOISE = (8.0, 0.25)  # median per pixel, and scatter between objects in dex
LABEL_ERRORS = (0.06, 0.15, 0.18, 0.08)  # median standard errors of the four labels
NO_LABELS = 0.08  # objects without any label
NO_LABEL = 0.05  # single labels absent from the others

LABELS = (
    Cell(name="log_lbol", unit="dex(erg/s)", ucd="phys.luminosity"),
    Cell(name="log_mbh", unit="dex(Msun)", ucd="phys.mass"),
    Cell(name="log_edd", unit="dex", ucd="phys.luminosity;arith.ratio"),
    Cell(name="slope", unit="", ucd="spect.index"),
)


def quasars(n: int, *, seed: int) -> Observations:
    """A survey's table of n quasars: spectra with real gaps, labels with errors, and the truth of both.

    **Modalities.** ``spectrum`` (590 pixels, 1216 to 5040 Å at rest, logarithmic) with an error bar per pixel;
    ``labels`` (log L_bol, log M_BH, log Eddington ratio, continuum slope alpha_λ) with error bars, some absent;
    ``redshift``; and the truth, complete and without errors: ``true_spectrum`` and ``true_labels``.

    The population and the choices that matter in training are those of the module's docstring.

    Arguments:
        n: Number of quasars; 20 000 take about seven seconds on one core and 1 GB.
        seed: Seed of the generator; the same n and seed give the same table.

    Raises:
        RequestError: n below 1.

    Example:
        >>> table = quasars(3, seed=0)
        >>> table.schema.names
        ('spectrum', 'labels', 'redshift', 'true_spectrum', 'true_labels')
        >>> table.parts["spectrum"].value.shape
        (3, 590)
    """
    if n < 1:
        raise RequestError(f"Expected n of at least 1; got {n}. Ask for more quasars.")
    rng = np.random.default_rng(seed)
    luminosity = _truncated(rng, n, (46.4, 0.5), (45.2, 47.6))
    eddington = _truncated(rng, n, (PIVOT_EDDINGTON, 0.35), (-2.0, 0.5))
    mass = luminosity - eddington - LOG_EDDINGTON
    slope = MEAN_SLOPE - 0.1 * (eddington - PIVOT_EDDINGTON) + 0.25 * rng.standard_normal(n)
    reddening = rng.exponential(MEAN_REDDENING, n)
    redshift = rng.uniform(*REDSHIFTS, n)
    ratio = SIGNAL_TO_NOISE[0] * 10 ** (SIGNAL_TO_NOISE[1] * rng.standard_normal(n))

    true_labels = np.stack([luminosity, mass, eddington, slope], axis=1)
    true = spectra(physics(luminosity, mass, slope, reddening, rng.standard_normal))
    sigma = _error_bars(rng, redshift, ratio)
    spectrum = true + sigma * rng.standard_normal(true.shape)
    spectrum[~_observed(redshift) | _masked(rng, n)] = np.nan
    label_sigma = np.array(LABEL_ERRORS) * 10 ** (0.12 * rng.standard_normal((n, 4)))
    label_sigma *= (SIGNAL_TO_NOISE[0] / ratio[:, None]) ** 0.3
    labels = true_labels + label_sigma * rng.standard_normal((n, 4))
    labels[rng.random((n, 4)) < NO_LABEL] = np.nan
    labels[rng.random(n) < NO_LABELS] = np.nan
    values = {
        "spectrum": spectrum,
        "labels": labels,
        "redshift": (redshift + REDSHIFT_ERROR * rng.standard_normal(n))[:, None],
        "true_spectrum": true,
        "true_labels": true_labels,
    }
    errors = {"spectrum": sigma, "labels": label_sigma, "redshift": np.full((n, 1), REDSHIFT_ERROR)}
    return Observations.from_arrays(_schema(), values, sigma=errors, ids=[f"Q{row:06d}" for row in range(n)])


def quasars_at(log_lbol: FloatArray, log_mbh: FloatArray, slope: FloatArray | float = MEAN_SLOPE) -> FloatArray:
    """Noiseless spectra of the mean quasars with these labels: no scatter, no dust; shape (N, 590).

    The Eddington ratio follows from luminosity and mass. On the grid of ``quasars(…).schema["spectrum"].grid`` and in
    its units: the trends (Baldwin effect, virial widths) that a model should find in scattered, noisy spectra.

    Arguments:
        log_lbol: dex(erg/s), shape (N,).
        log_mbh: dex(Msun), shape (N,).
        slope: alpha_lambda, shape (N,) or one number.

    Example:
        >>> import numpy as np
        >>> quasars_at(np.array([45.5, 47.0]), np.array([8.5, 9.5])).shape
        (2, 590)
    """
    luminosity, mass, alpha = np.broadcast_arrays(*map(np.atleast_1d, (log_lbol, log_mbh, slope)))
    return spectra(physics(luminosity, mass, alpha, np.zeros(len(mass)), np.zeros))


def _schema() -> Schema:
    flux = {"grid": GRID, "ucd": "phot.flux.density;em.wl", "unit": ""}
    return Schema(
        modalities=(
            ModalitySpec(name="spectrum", **flux),
            ModalitySpec(name="labels", cells=LABELS, axis="label"),
            ModalitySpec(name="redshift", cells=(Cell(name="redshift", ucd="src.redshift"),)),
            ModalitySpec(name="true_spectrum", **flux),
            ModalitySpec(
                name="true_labels",
                cells=tuple(cell.model_copy(update={"name": f"true_{cell.name}"}) for cell in LABELS),
                axis="label",
            ),
        )
    )


def _truncated(
    rng: np.random.Generator, n: int, normal: tuple[float, float], bounds: tuple[float, float]
) -> FloatArray:
    mean, sd = normal
    low, high = (ndtr((bound - mean) / sd) for bound in bounds)
    return mean + sd * ndtri(rng.uniform(low, high, n))


def _error_bars(rng: np.random.Generator, redshift: FloatArray, ratio: FloatArray) -> FloatArray:
    observed = (1.0 + redshift[:, None]) * GRID.centres()
    # The mean continuum at the middle of the window, to which the object's one signal-to-noise refers.
    middle = np.sqrt(WINDOW[0] * WINDOW[1]) / (1.0 + redshift) / 3000.0
    level = (middle**MEAN_SLOPE / ratio)[:, None]
    # The instrument's response falls at both ends, and airglow rises in the red; sky noise in f_lambda is blue-tilted.
    blue = 1.2 * np.exp(-np.maximum(observed - WINDOW[0], 0.0) / 300.0)
    red = 0.8 * (np.clip(observed - 7300.0, 0.0, 1900.0) / 1900.0) ** 2
    tilt = (np.clip(observed, *WINDOW) / np.sqrt(WINDOW[0] * WINDOW[1])) ** -1.0
    airglow = 1.0 + 0.5 * (observed > 7200.0) * (np.sin(observed / 40.0) > 0.7)
    return level * tilt * (1.0 + blue + red) * airglow * np.exp(0.05 * rng.standard_normal(observed.shape))


def _observed(redshift: FloatArray) -> BoolArray:
    observed = (1.0 + redshift[:, None]) * GRID.centres()
    inside = (observed > WINDOW[0]) & (observed < WINDOW[1])
    for low, high in BAD_BANDS:
        inside &= (observed < low) | (observed > high)
    return inside


def _masked(rng: np.random.Generator, n: int) -> BoolArray:
    """Absorption systems (on average 1.5 runs of 3 to 14 pixels per object) and 1 % of single bad pixels."""
    masked = rng.random((n, GRID.size)) < 0.01
    systems = rng.poisson(1.5, n)
    pixel = np.arange(GRID.size)
    for k in range(int(systems.max(initial=0))):
        start = rng.integers(0, GRID.size, (n, 1))
        length = rng.integers(3, 15, (n, 1))
        masked |= (systems[:, None] > k) & (pixel >= start) & (pixel < start + length)
    return masked

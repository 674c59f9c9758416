"""Real SDSS quasar spectra, their masks and their noise: held-out pixels of objects never trained on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import analysis, plots
from consilience.analysis.base import truth_of
from consilience.blocks.likelihoods import FLOOR
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, Grid, ModalitySpec, Schema, validated
from consilience.io.resampling import resample
from consilience.predict.fitted import Fitted
from consilience.studies.linear import SpectralPrediction, mean_spectrum, principal_components
from consilience.studies.runner import Results, StudyConfig, read_arrays
from consilience.typing import BoolArray, FloatArray
from consilience.workflow.fit import fit

__all__ = ["Settings", "observations", "run"]

# Stretches with little line emission (Vanden Berk et al. 2001, AJ 122, 549), so that the norm is the continuum's.
WINDOWS = ((1430.0, 1480.0), (1690.0, 1720.0), (2000.0, 2250.0), (2600.0, 2700.0))
SLOPE = -1.55  # of the mean continuum, there: windows at different wavelengths then give one norm
PIVOT = 2000.0  # Angstrom where the norm is taken


class Settings(Frozen):
    """Grid, split and what is hidden."""

    start: float  # Angstrom, rest frame
    stop: float
    pixels: int = Field(ge=20)
    train: float = Field(gt=0, lt=1)  # share of the objects
    seen: float = Field(default=0.5, ge=0, lt=1)  # share of the grid that a spectrum must show to be used
    gap: float = Field(gt=0, lt=0.5)  # longest hidden gap, share of the grid; two per spectrum
    single: float = Field(ge=0, lt=0.5)  # share of single hidden pixels
    draws: int = Field(default=400, ge=20)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Log density and squared standardised error of hidden pixels, NaN elsewhere, each (N, D)."""

    log_density: FloatArray
    chi2: FloatArray


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Train on some objects, hide gaps and single pixels in the spectra of others, predict them.

    Arguments:
        config: Model, training and :class:`Settings`.
        data: Folder with ``qso_sdss_picca80.npz``.
        seed: Of the split, the hidden pixels and the training.
        quick: Tiny sizes; already in ``config``.
        out: Folder for the model.

    Raises:
        RequestError: no data folder.
        DataError: no such file.
    """
    size = validated(Settings, config.study, where="[study]")
    table = observations(read_arrays(data, "qso_sdss_picca80"), size)
    first, second = table.split(size.train, seed=seed, by="group")
    hidden = _hidden(second, size, np.random.default_rng(seed))
    train = _normalised(first, np.zeros(first.parts["spectrum"].value.shape, bool))
    test = _normalised(second, hidden)
    fitted = fit(config.config.family, train, config.config.train.model_copy(update={"seed": seed}))
    given = test.hide_cells({"spectrum": hidden})
    truth = truth_of(test, "spectrum", hidden)
    mask = {"spectrum": hidden}
    explained = analysis.reconstruction(fitted, test, ["spectrum"], hidden=mask, n=size.draws, seed=seed)
    density = fitted.cell_log_prob(test, ["spectrum"], given=given)["spectrum"]
    scored = {
        "mean_spectrum": _score(mean_spectrum(train, given), test, truth),
        "pca": _score(principal_components(train, given, seed=seed), test, truth),
    }
    nlpd = {"model": float(-np.nanmean(np.where(np.isfinite(truth), density, np.nan)))}
    chi2 = {"model": float(explained.chi2[0])}
    nlpd |= {name: float(-np.nanmean(found.log_density)) for name, found in scored.items()}
    chi2 |= {name: float(np.nanmean(found.chi2)) for name, found in scored.items()}
    learned, measured = _noise(fitted, train)
    checked = analysis.calibration(fitted, test, ["spectrum"], given=given, n=size.draws, seed=seed)
    cells = np.isfinite(truth)
    fitted.save(out / "model")
    numbers: dict[str, float | int | bool | None] = {
        "spectra": len(table),
        "train_spectra": len(train),
        "test_spectra": len(test),
        "test_objects": len(np.unique(np.asarray(test.group))),
        "pixels": size.pixels,
        "missing_fraction": float(1 - table.parts["spectrum"].seen.mean()),
        "hidden_pixels": int(cells.sum()),
        "chi2_per_dof": chi2["model"],
        "nlpd_minus_mean_spectrum": nlpd["model"] - nlpd["mean_spectrum"],
        "nlpd_minus_pca": nlpd["model"] - nlpd["pca"],
        "learned_noise_median": float(np.median(learned)),
        "measured_noise_median": float(np.median(measured)),
        "learned_over_measured_median": float(np.median(learned / measured)),
        **{f"nlpd_{name}": value for name, value in nlpd.items()},
        **{f"chi2_{name}": value for name, value in chi2.items()},
        **_coverage(checked.pit, cells),
    }
    rows = [[name.replace("_", " "), nlpd[name], chi2[name]] for name in nlpd]
    grid = table.schema["spectrum"].grid
    assert grid is not None
    figures = {
        "noise": _noise_figure(grid, learned, measured),
        "spectrum": _spectrum_figure(fitted, test, hidden, size, seed),
    }
    title = f"{int(cells.sum())} hidden pixels of {len(test)} spectra"
    return Results(
        numbers,
        {title: Table(rows=rows, names=["method", "nlpd", "chi2/dof"])},
        figures,
        (
            f"Learned scatter, median over pixels: {numbers['learned_noise_median']:.3f}; "
            f"measured error bars: {numbers['measured_noise_median']:.3f} (units of the norm).",
        ),
    )


def observations(arrays: dict[str, Any], size: Settings) -> Observations:
    """The quasars at rest on a logarithmic grid, as measured; a row per spectrum that shows enough, grouped by object.

    Only quasars without a redshift warning. Pixels with zero inverse variance or any bit of the AND mask are not used.
    """
    grid = Grid(start=size.start, stop=size.stop, size=size.pixels, spacing="log", unit="Angstrom")
    quasar = np.flatnonzero((arrays["spec_class"] == "QSO") & (arrays["zwarning"] == 0))
    seen = (arrays["ivar"] > 0) & (arrays["and_mask"] == 0) & np.isfinite(arrays["flux"])
    sigma = np.where(seen, np.where(seen, arrays["ivar"], 1.0) ** -0.5, np.nan).astype(float)
    rows = [
        resample(
            arrays["flux"][row].astype(float), arrays["wavelength"], grid.edges(), sigma=sigma[row], seen=seen[row],
            redshift=float(arrays["z"][row]),
        )
        for row in quasar
    ]  # fmt: skip
    unit = "1e-17 erg / (s cm2 Angstrom)"
    schema = Schema(modalities=(ModalitySpec(name="spectrum", grid=grid, unit=unit, ucd="phot.flux.density;em.wl"),))
    ids = [f"{arrays['plate'][row]}-{arrays['mjd'][row]}-{arrays['fiber'][row]}-{row}" for row in quasar]
    obs = Observations.from_arrays(
        schema,
        {"spectrum": np.stack([value for value, _ in rows])},
        sigma={"spectrum": np.stack([error for _, error in rows if error is not None])},
        ids=ids,
        group=arrays["thing_id"][quasar],
    )
    return obs[obs.parts["spectrum"].seen.sum(axis=1) >= size.seen * size.pixels].renumbered()


def _hidden(obs: Observations, size: Settings, rng: np.random.Generator) -> BoolArray:
    """Two gaps and single pixels per spectrum, among those seen."""
    seen = obs.parts["spectrum"].seen
    hidden = rng.random(seen.shape) < size.single
    pixel = np.arange(seen.shape[1])
    for row in range(len(seen)):
        there = np.flatnonzero(seen[row])
        for _ in range(2):
            begin = rng.choice(there)
            hidden[row] |= (pixel >= begin) & (pixel < begin + rng.integers(5, max(6, int(size.gap * len(pixel)))))
    return hidden & seen


def _normalised(obs: Observations, hidden: BoolArray) -> Observations:
    """Spectra over their continuum at 2000 Å: the median of shown pixels of the windows, brought there by the slope.

    Where no window is shown, all shown pixels are used. Hidden pixels play no part.
    """
    spec, part = obs.schema["spectrum"], obs.parts["spectrum"]
    assert spec.grid is not None
    centres = spec.grid.centres()
    window = np.zeros(len(centres), bool)
    for low, high in WINDOWS:
        window |= (centres > low) & (centres < high)
    shown = part.seen & ~hidden
    use = np.where((shown & window).any(axis=1)[:, None], shown & window, shown)
    norm = np.nanmedian(np.where(use, part.value / (centres / PIVOT) ** SLOPE, np.nan), axis=1)[:, None]
    schema = Schema(modalities=(spec.model_copy(update={"unit": ""}),), group=obs.schema.group)
    parts = {"spectrum": replace(part, value=part.value / norm, sigma=part.sigma / norm)}
    return replace(obs, schema=schema, parts=parts)


def _score(found: SpectralPrediction, test: Observations, truth: FloatArray) -> _Scored:
    variance = found.variance + np.nan_to_num(test.parts["spectrum"].sigma) ** 2
    chi2 = (truth - found.mean) ** 2 / variance
    return _Scored(-0.5 * (np.log(2 * np.pi * variance) + chi2), chi2)


def _coverage(pit: FloatArray, cells: BoolArray) -> dict[str, float]:
    u = np.abs(pit[cells] - 0.5) * 2
    return {f"coverage{100 * level:.0f}_hidden_pixels": float((u <= level).mean()) for level in (0.68, 0.95)}


def _noise(fitted: Fitted, train: Observations) -> tuple[FloatArray, FloatArray]:
    r"""Learned scatter :math:`\sigma_d` and median measured error of each pixel, units of the norm, each (D,)."""
    state = fitted.members[0].state_dict()["likelihoods.spectrum.log_noise"].double().cpu().numpy()
    zero = np.zeros((1, len(state)))
    unit = fitted.scaler.inverse("spectrum", zero + 1) - fitted.scaler.inverse("spectrum", zero)
    part = train.parts["spectrum"]
    measured = np.nanmedian(part.sigma, axis=0)
    return np.sqrt(np.exp(state) + FLOOR) * unit[0], measured


def _noise_figure(grid: Grid, learned: FloatArray, measured: FloatArray) -> plots.Figure:
    labels = [
        plots.Labels(grid.name, "sigma", title, grid.unit)
        for title in ("Learned scatter of each pixel, over the norm", "Measured error bars, median")
    ]
    both = zip((learned, measured), labels, strict=True)
    return plots.profiles([plots.Profile(value, grid.centres(), (), label) for value, label in both])


def _spectrum_figure(fitted: Fitted, test: Observations, hidden: BoolArray, size: Settings, seed: int) -> plots.Figure:
    spec, part = test.schema["spectrum"], test.parts["spectrum"]
    assert spec.grid is not None
    row = int((hidden.sum(axis=1) * part.seen.sum(axis=1)).argmax())
    given = test.hide_cells({"spectrum": hidden})[row]
    draws = fitted.sample(given, ["spectrum"], n=size.draws, seed=seed).values["spectrum"][:, 0]
    labels = plots.Labels(spec.grid.name, "flux over continuum", str(test.ids[row]), spec.grid.unit)
    return plots.spectrum(spec.grid.centres(), draws, part.value[row], part.sigma[row], hidden[row], labels)

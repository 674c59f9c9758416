"""Figures are drawn from arrays alone, show what they claim, and leave no state behind."""

import matplotlib as mpl
import numpy as np
import pytest

from consilience import plots
from consilience.errors import DataError
from consilience.plots.corner import mass_levels


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def texts(figure):
    found = [
        t.get_text()
        for legend in [*figure.legends, *(a.get_legend() for a in figure.axes)]
        if legend
        for t in legend.get_texts()
    ]
    return found + [a.get_xlabel() for a in figure.axes] + [a.get_ylabel() for a in figure.axes]


def test_spectrum_shades_gaps_and_normalises_residuals(rng):
    grid = np.linspace(1000, 2000, 50)
    value = np.sin(grid / 100)
    value[10:20] = np.nan
    value[30] = np.nan
    hidden = np.zeros(50, bool)
    hidden[40:45] = True
    draws = np.sin(grid / 100) + 0.1 * rng.normal(size=(400, 50))
    labels = plots.Labels("wavelength", "flux", "a $b", "Angstrom", "Jy")
    figure = plots.spectrum(grid, draws, value + 0.3, np.full(50, 0.2), hidden, labels)
    top, bottom = figure.axes
    gaps = [
        p
        for p in top.patches
        if p.get_label() == "not seen" or p.get_width() in (pytest.approx(204, abs=5), pytest.approx(20.4, abs=2))
    ]
    assert len(gaps) == 2
    assert {"68 % band", "95 % band", "data", "data kept from the model", "not seen"} <= set(texts(figure))
    assert "wavelength [Angstrom]" in texts(figure) and "flux [Jy]" in texts(figure)
    shown = bottom.get_lines()[0].get_ydata()
    assert np.nanmedian(shown) == pytest.approx(0.3 / np.hypot(0.1, 0.2), rel=0.1)
    assert np.isnan(shown[10:20]).all() and np.isnan(shown[40:45]).all()
    with pytest.raises(DataError, match="one object"):
        plots.spectrum(grid, draws[:, :40], value)


def test_corner_contours_hold_their_mass(rng):
    x = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=200_000)
    count, _, _ = np.histogram2d(*x.T, bins=60, range=[(-4, 4)] * 2)
    low, high = mass_levels(count, [0.95, 0.68])
    assert count[count >= low].sum() / count.sum() == pytest.approx(0.95, abs=0.01)
    assert count[count >= high].sum() / count.sum() == pytest.approx(0.68, abs=0.01)
    figure = plots.corner(rng.normal(size=(500, 3)), ["a", "b", "c"], ["", "mag", ""], np.array([0, np.nan, 1.0]))
    assert len(figure.axes) == 6 and "b [mag]" in texts(figure) and "measured" in texts(figure)
    with pytest.raises(DataError):
        plots.corner(np.full((5, 2), np.nan), ["a", "b"], ["", ""])


def test_corner_shows_a_sample_of_the_truth_beside_the_draws(rng):
    names, units = ["a", "b"], ["", ""]
    figure = plots.corner(rng.normal(size=(500, 2)), names, units, 9 + rng.normal(size=(400, 2)))
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < 9 < high
    assert len(figure.axes[1].collections) == len(plots.corner(np.ones((5, 2)), names, units).axes[1].collections) + 1
    for wrong in (np.ones(3), np.full((4, 2), np.nan)):
        with pytest.raises(DataError, match="truth"):
            plots.corner(np.ones((5, 2)), names, units, wrong)


def test_coverage_marks_what_is_outside(rng):
    band = plots.CoverageBand(np.array([0.5, 0.9]), np.array([0.45, 0.85]), np.array([0.55, 0.95]), 0.5, 1.5, 10)
    right = plots.calibration({"x": rng.uniform(size=2000)}, {"x": band}, 0.99)
    assert "outside the band" not in texts(right) and "simultaneous 99 % band" in texts(right)
    wrong = plots.calibration({"x": 0.5 + 0.2 * (rng.uniform(size=2000) - 0.5)}, {"x": band}, 0.99)
    assert "outside the band" in texts(wrong)
    line = next(line for line in right.axes[0].get_lines() if line.get_label() == "observed")
    assert np.abs(line.get_ydata()).max() < 5


def test_the_rest_draw_and_serialise(rng):
    cells = {"mass": rng.normal(size=50), "age": np.append(rng.normal(size=49), np.nan)}
    sd = {key: np.full(50, 0.2) for key in cells}
    where = rng.normal(size=(50, 2))
    latent, again = (plots.latent_map(where, cells["age"], plots.Labels("z1", "z2"), "age [Gyr]") for _ in range(2))
    figures = [
        plots.predicted_vs_true(cells, cells, sd, ["kg", ""]),
        latent,
        plots.outlier_map(rng.normal(size=50), rng.normal(size=50) * 40, np.arange(50) > 47, 2.0),
        plots.history(
            [{"step": s, "train/total": 1.0 / (s + 1), "train/nll/x": np.nan if s == 3 else 1.0} for s in range(40)]
        ),
        plots.profiles([plots.Profile(np.ones(4), np.arange(4.0)), plots.Profile(np.ones(2), names=("a", "b"))], 1.0),
        plots.methods(
            {"NLPD": {"model": np.array([1.0, np.nan]), "mean": np.array([2.0, np.nan])}}, ["a", "b"], "model"
        ),
    ]
    before = dict(mpl.rcParams)
    for figure in figures:
        assert plots.png(figure).startswith(b"\x89PNG")
    assert plots.svg(again) == plots.svg(plots.latent_map(where, cells["age"], plots.Labels("z1", "z2"), "age [Gyr]"))
    assert dict(mpl.rcParams) == before
    assert "measured mass [kg]" in texts(figures[0]) and "unknown" in texts(latent)
    with pytest.raises(DataError, match="positions"):
        plots.latent_map(np.zeros((3, 3)), np.zeros(3), plots.Labels(), "")
    with pytest.raises(DataError, match="history"):
        plots.history([])


def test_history_runs_on_from_stage_to_stage():
    rows = [{"stage": float(k), "step": float(s), "train/total": 1.0} for k in range(2) for s in (0, 50, 100)]
    axes = plots.history(rows).axes[0]
    assert axes.get_lines()[0].get_xdata().tolist() == [0, 50, 100, 100, 150, 200]
    assert [line.get_xdata()[0] for line in axes.get_lines()[1:]] == [100]


def test_of_many_objects_some_have_bars(rng):
    x = {"mass": rng.normal(size=1200)}
    axes = plots.predicted_vs_true(x, x, {"mass": np.ones(1200)}, ["kg"]).axes[0]
    assert len(axes.get_lines()[0].get_xdata()) == 1200
    assert len(axes.containers[0].lines[0].get_xdata()) == 400


def test_trends_show_points_beside_lines_and_dashes_where_they_are_many():
    few, many, labels = np.arange(4.0), np.linspace(0, 1, 60), plots.Labels("x", "y", "t", "s", "m")
    parts = [
        plots.Trend(few, {"a": few + 1, "b": few + 2}, {"a": few + 1, "b": few + 2}, labels),
        plots.Trend(many, {"c": many + 1}, {"c": many + 1.1}, log=True),
    ]  # fmt: skip
    figure = plots.trends(parts, names=("fitted", "measured"))
    left, right = figure.axes
    assert {"a, fitted", "a, measured", "b, fitted", "c, measured", "x [s]", "y [m]"} <= set(texts(figure))
    assert [line.get_marker() for line in left.get_lines()] == ["None", "o", "None", "o"]
    assert right.get_lines()[1].get_linestyle() == "--"
    assert right.get_yscale() == "log"
    np.testing.assert_array_equal(left.get_lines()[3].get_ydata(), few + 2)


def test_readings_lie_where_the_points_are_drawn(rng):
    import io

    place, colour = rng.normal(size=(12, 2)), np.linspace(0, 1, 12)
    figure = plots.latent_map(place, colour, plots.Labels("z1", "z2"), "mass [solMass]")
    (cloud,) = (one for one in plots.readings(figure) if len(one.axes) == 3)
    picture = mpl.image.imread(io.BytesIO(plots.png(figure, dpi=200)))[..., :3]
    pixel = np.round(cloud.place * np.array(picture.shape[1::-1])).astype(int)
    seen = picture[pixel[:, 1], pixel[:, 0]]
    expected = mpl.colormaps["viridis"](np.clip((colour - np.quantile(colour, 0.01)) / 0.98, 0, 1))[:, :3]
    assert np.abs(seen - (0.85 * expected + 0.15)).max() < 0.05
    assert cloud.axes == ("z1", "z2", "mass [solMass]")
    assert cloud.told[3] == tuple(f"{v:.4g}" for v in (*place[3], colour[3]))


def test_readings_name_rows_and_columns_and_the_lengths_of_bars():
    table = plots.heat_map(np.array([[1.0, 2.0], [3.0, np.nan]]), ["a", "b"], ["c", "d"], "value", "")
    (cells,) = plots.readings(table)
    assert cells.told == (("c", "a", "1"), ("d", "a", "2"), ("c", "b", "3"), ("d", "b", "–"))
    steps = plots.waterfall(1.0, {"x": 2.0, "y": -0.5}, "mass", 2.6, "row 1")
    bars = [told for one in plots.readings(steps) for told in one.told]
    assert {("2", "x"), ("-0.5", "y")} == set(bars)


def test_readings_of_long_lines_are_thinned_and_lines_across_a_panel_left_out(rng):
    figure = plots.spectrum(np.arange(5000.0), rng.normal(size=(50, 5000)), rng.normal(size=5000))
    found = plots.readings(figure)
    assert found and all(len(one.told) <= 400 for one in found)
    assert all((one.place >= -0.01).all() and (one.place <= 1.01).all() for one in found)

"""Simulated recordings: what is written in the docstring is what comes out."""

import numpy as np
import pytest

from consilience.errors import RequestError
from consilience.simulators import neural
from consilience.simulators.neural import digit_images


def lagged(x, lag):
    """Correlation of a latent with itself ``lag`` bins later."""
    return np.corrcoef(x[:, :-lag].ravel(), x[:, lag:].ravel())[0, 1]


@pytest.fixture(scope="module")
def trials():
    return neural(60, seed=0, neurons=40)


def test_latents_have_the_variances_and_the_length_scale_of_the_seed(trials):
    for name, variance in (("true_angle", 120**2 * 0.3), ("true_private", 0.5), ("true_zoom", 0.8)):
        x = trials.parts[name].value
        assert x.var() == pytest.approx(variance, rel=0.35), name
        assert lagged(x, 10) == pytest.approx(np.exp(-0.5), abs=0.12), name
    assert trials.parts["true_zoom"].value.mean() == pytest.approx(1, abs=0.25)


def test_counts_have_the_true_rates_which_are_log_linear_in_two_latents(trials):
    rates, spikes = trials.parts["true_rates"].value, trials.parts["spikes"].value
    standard = (spikes - rates) / np.sqrt(rates)
    assert standard.mean() == pytest.approx(0, abs=0.01) and standard.var() == pytest.approx(1, abs=0.03)
    design = np.stack([trials.parts["true_angle"].value / 120, trials.parts["true_private"].value, np.ones((60, 60))])
    design = design.reshape(3, -1).T
    log_rates = np.log(rates).reshape(len(design), -1)
    loadings = np.linalg.lstsq(design, log_rates, rcond=None)[0]
    assert np.allclose(design @ loadings, log_rates)
    assert np.abs(loadings[:2]).max() <= 1.5 and np.abs(loadings[2]).max() <= 0.5


def test_an_image_shows_the_angle_and_the_magnitude_of_the_zoom(trials):
    images, zoom = trials.parts["images"].value, np.abs(trials.parts["true_zoom"].value)
    assert images.min() >= 0 and images.max() <= 1
    ink = images.sum((2, 3))
    inside = (zoom > 0.3) & (zoom < 1.2)  # neither clipped nor smaller than a pixel
    assert np.corrcoef(ink[inside], zoom[inside] ** 2)[0, 1] > 0.99
    # turned back by 90 degrees it is the same picture
    turned = digit_images(np.array([[0.0, np.pi / 2]]), np.ones((1, 2)))[0]
    assert np.allclose(np.rot90(turned[0], 1), turned[1], atol=1e-9) or np.allclose(
        np.rot90(turned[0], -1), turned[1], atol=1e-9
    )


def test_the_same_seed_gives_the_same_table_and_another_does_not():
    first, again, other = (neural(2, seed=seed, bins=8, neurons=3) for seed in (1, 1, 2))
    for name, part in first.parts.items():
        assert np.array_equal(part.value, again.parts[name].value)
        assert not np.array_equal(part.value, other.parts[name].value)


@pytest.mark.parametrize("dynamics", ["lorenz", "switch"])
def test_other_dynamics_have_the_same_spread(dynamics):
    angle = neural(80, seed=3, neurons=2, dynamics=dynamics).parts["true_angle"].value
    assert angle.std() == pytest.approx(120 * 0.3**0.5, rel=0.15)
    jumps = np.abs(np.diff(angle, axis=1)) > 1e-9
    if dynamics == "switch":
        assert jumps.mean() == pytest.approx(0.1, abs=0.02)
    else:
        assert jumps.all() and lagged(angle, 1) > 0.95


def test_bad_sizes_and_dynamics_are_named():
    with pytest.raises(RequestError, match="bins >= 2"):
        neural(1, seed=0, bins=1)
    with pytest.raises(RequestError, match="lorenz.*smooth.*switch"):
        neural(1, seed=0, dynamics="jumpy")

"""Data with known truth: functions (n, seed, …) -> Observations."""

from consilience.simulators.deep import deep_galaxies
from consilience.simulators.galaxies import galaxies
from consilience.simulators.gaussian import LinearGaussian, factors, gaussian, linear_gaussian
from consilience.simulators.hyperspectral import hyperspectral
from consilience.simulators.neural import neural
from consilience.simulators.quasars import quasars, quasars_at
from consilience.simulators.sdss import sdss_galaxies

__all__ = [
    "LinearGaussian",
    "deep_galaxies",
    "factors",
    "galaxies",
    "gaussian",
    "hyperspectral",
    "linear_gaussian",
    "neural",
    "quasars",
    "quasars_at",
    "sdss_galaxies",
]

"""Data with known truth: functions (n, seed, …) -> Observations."""

from consilience.simulators.gaussian import LinearGaussian, gaussian, linear_gaussian
from consilience.simulators.quasars import quasars, quasars_at

__all__ = ["LinearGaussian", "gaussian", "linear_gaussian", "quasars", "quasars_at"]

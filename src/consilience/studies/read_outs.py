"""Read-outs of one known quantity from one latent, fitted on training trials and scored on others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.typing import FloatArray

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["ReadOut", "explained"]

KNOTS = 9  # of the cubic splines, at quantiles of the latent
RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class ReadOut:
    """A smooth map from one latent to one quantity: a latent is identified only up to such a map.

    Example:
        >>> x = np.linspace(-2, 2, 400)
        >>> curved = ReadOut.fit(x, x**2)
        >>> round(explained(x**2, curved(x)), 2), abs(round(explained(x**2, ReadOut.fit(x, x**2, linear=True)(x)), 2))
        (1.0, 0.0)
    """

    model: "Pipeline"

    @classmethod
    def fit(cls, latent: FloatArray, quantity: FloatArray, *, linear: bool = False) -> "ReadOut":
        """A cubic spline, constant beyond the training latents, or a line; both arrays of any one shape."""
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import SplineTransformer, StandardScaler

        steps: list[Any] = [StandardScaler()]
        if not linear:
            steps.append(SplineTransformer(n_knots=KNOTS, knots="quantile", extrapolation="constant"))
        model = make_pipeline(*steps, Ridge(alpha=RIDGE))
        return cls(model.fit(latent.reshape(-1, 1), quantity.ravel()))

    def __call__(self, latent: FloatArray) -> FloatArray:
        """The quantity read from latents of any shape."""
        return self.model.predict(latent.reshape(-1, 1)).reshape(latent.shape)


def explained(truth: FloatArray, guess: FloatArray) -> float:
    """R²: one minus the mean squared error in units of the variance of the truth."""
    return float(1 - np.mean((truth - guess) ** 2) / np.var(truth))

"""Read-outs of one known quantity from the latents of a block, fitted on training trials and scored on others."""

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
    """A sum of smooth maps from each latent to one quantity: a latent is identified only up to such a map.

    Example:
        >>> x = np.linspace(-2, 2, 400)[:, None]
        >>> curved, straight = ReadOut.fit(x, x[:, 0] ** 2), ReadOut.fit(x, x[:, 0] ** 2, linear=True)
        >>> round(explained(x[:, 0] ** 2, curved(x)), 2), abs(round(explained(x[:, 0] ** 2, straight(x)), 2))
        (1.0, 0.0)
    """

    model: "Pipeline"

    @classmethod
    def fit(cls, latent: FloatArray, quantity: FloatArray, *, linear: bool = False) -> "ReadOut":
        """Cubic splines, constant beyond the training latents (…, L), or lines; the quantity (…)."""
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import SplineTransformer, StandardScaler

        steps: list[Any] = [StandardScaler()]
        if not linear:
            steps.append(SplineTransformer(n_knots=KNOTS, knots="quantile", extrapolation="constant"))
        model = make_pipeline(*steps, Ridge(alpha=RIDGE))
        return cls(model.fit(latent.reshape(-1, latent.shape[-1]), quantity.ravel()))

    def __call__(self, latent: FloatArray) -> FloatArray:
        """The quantity (…) read from latents (…, L)."""
        return self.model.predict(latent.reshape(-1, latent.shape[-1])).reshape(latent.shape[:-1])


def explained(truth: FloatArray, guess: FloatArray) -> float:
    """R²: one minus the mean squared error in units of the variance of the truth."""
    return float(1 - np.mean((truth - guess) ** 2) / np.var(truth))

"""Latent blocks as tables of numbers, and what a network reads from one table of another."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from consilience.data.observations import Observations
from consilience.typing import BoolArray, FloatArray

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["Block", "blocks_of", "read", "varies"]

WIDTHS = (64, 64)  # of the network
LEAST = 1e-6  # standard deviation of what varies, else it is rounding


@dataclass(frozen=True, slots=True)
class Block:
    """Gaussian posteriors of one latent block: ``mean`` and ``std`` of every object, (N, Q), axes of time flattened."""

    mean: FloatArray
    std: FloatArray

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """One draw of every object, (N, Q), each latent on its own."""
        return self.mean + self.std * rng.standard_normal(self.mean.shape)


def blocks_of(fitted: "Fitted", obs: Observations, *, hide: Iterable[str] = ()) -> dict[str, Block]:
    """The latent blocks of every row, given the model's modalities but those to ``hide``.

    Raises:
        CapabilityError: a model without latents.
    """
    names = fitted.schema.names
    latent = fitted.latent(obs.select(*names).hide(*(name for name in hide if name in names)))
    return {
        block: Block(mean.reshape(len(mean), -1), latent.std[block].reshape(len(mean), -1))
        for block, mean in latent.mean.items()
    }


def varies(x: FloatArray) -> BoolArray:
    """Which columns of x (N, Q) differ between rows by more than rounding, (Q,); the others tell nothing.

    Example:
        >>> varies(np.array([[0.0, 1.0], [0.0, 2.0]])).tolist()
        [False, True]
    """
    return x.std(axis=0) > LEAST


def read(x: FloatArray, y: FloatArray, other: FloatArray, *, seed: int = 0, members: int = 1) -> FloatArray:
    """What a network of two hidden layers fitted on x (N, Q) and y (N, K) makes of other rows (M, Q), shape (M, K).

    A tenth of the rows tells when to stop. Of several members with seeds of their own it is the mean.
    """
    if members > 1:
        return np.mean([read(x, y, other, seed=seed + number) for number in range(members)], axis=0)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    centre, spread = x.mean(0), np.where(varies(x), x.std(0), np.inf)
    offset, unit = y.mean(0), np.maximum(y.std(0), 1e-300)
    model = MLPRegressor(
        hidden_layer_sizes=WIDTHS,
        early_stopping=True,
        batch_size=min(256, len(x) // 2),  # pyright: ignore[reportArgumentType]
        learning_rate_init=3e-3,
        max_iter=100,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scaled = (y - offset) / unit
        model.fit((x - centre) / spread, scaled[:, 0] if scaled.shape[1] == 1 else scaled)
    return offset + unit * np.reshape(model.predict((other - centre) / spread), (len(other), -1))

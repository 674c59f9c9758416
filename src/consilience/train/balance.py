"""Modalities of the same influence: factors of their terms that follow the errors on validation rows."""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field

from consilience.blocks.noise import Noise
from consilience.data.observations import Observations
from consilience.data.schema import Frozen
from consilience.models.base import AbstractModel
from consilience.models.latent import flat

__all__ = ["Balance", "balanced", "relative_errors"]

BALANCED = ("nll", "self", "cross")  # kinds of terms
ROWS, DRAWS = 256, 8  # validation rows that are reconstructed, and draws whose mean is compared


class Balance(Frozen):
    r"""Factors λ of M modalities by which each has the same influence whatever its relative error R.

    .. math:: \lambda_m = \frac{M / R_m}{\sum_k 1 / R_k}

    R is the squared error of reconstructed validation rows over that of the mean, so that λ R is alike for all. Factors
    are those of the last validation, for terms ``nll/m``, ``self/m`` and ``cross/m`` in training; what is validated is
    the objective without them.
    """

    names: tuple[str, ...] = Field(min_length=2)  # modalities that are balanced
    most: float = Field(default=1e3, gt=1)  # largest ratio of two factors

    def factors(self, errors: Mapping[str, float]) -> dict[str, float]:
        """λ of every modality from its R.

        Example:
            >>> Balance(names=("a", "b")).factors({"a": 0.1, "b": 0.3})
            {'a': 1.5, 'b': 0.5}
        """
        worst = max(errors[name] for name in self.names)
        inverse = {name: 1 / max(errors[name], worst / self.most) for name in self.names}
        return {name: len(inverse) * value / sum(inverse.values()) for name, value in inverse.items()}


def balanced(weights: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """Weights of terms, times the factors of their modalities.

    Example:
        >>> balanced({"nll/a": 1.0, "kl/a": 1.0}, {"a": 1.5})
        {'nll/a': 1.5, 'kl/a': 1.0}
    """
    found = {}
    for name, weight in weights.items():
        kind, _, detail = name.partition("/")
        found[name] = weight * factors.get(detail, 1.0) if kind in BALANCED else weight
    return found


@torch.no_grad()
def relative_errors(model: AbstractModel, rows: Observations, names: Sequence[str]) -> dict[str, float]:
    """Squared error of reconstructed cells, the mean of draws given all that was seen, over that of the rows' mean."""
    training = model.training
    model.eval()
    some = rows[:ROWS]
    like = next(model.parameters())
    drawn = model.condition(some).sample(tuple(names), Noise(0, some.ids, dtype=like.dtype, device=like.device), DRAWS)
    found = {}
    for name in names:
        cells = flat(some.parts[name])
        mean = torch.where(cells.seen, cells.value, 0.0).sum(0) / cells.seen.sum(0).clamp_min(1)
        left, whole = (
            float(torch.where(cells.seen, (cells.value - said).square(), 0.0).sum())
            for said in (drawn[name].mean(0), mean)
        )
        found[name] = left / max(whole, 1e-12)
    model.train(training)
    return found

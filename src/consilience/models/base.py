"""What every family is: unweighted terms for training, conditionals for everything else."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from consilience.blocks.noise import Noise
from consilience.blocks.physics import Disc
from consilience.data.masking import Policy
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import Frozen, ModalitySpec, Schema
from consilience.errors import RequestError

__all__ = [
    "AbstractFamily",
    "AbstractModel",
    "Batch",
    "Conditional",
    "Density",
    "Global",
    "Group",
    "HasDecoders",
    "HasDensity",
    "HasDiscs",
    "HasLatent",
    "LatentPosterior",
    "PerObject",
    "Phase",
    "Term",
    "known_method",
    "slot",
]


class PerObject(NamedTuple):
    """One number per object in nats, (B,), averaged over the rows where it applies, (B,) bool."""

    value: Tensor
    applies: Tensor


class Global(NamedTuple):
    """A number of the whole model, already divided by the number of training objects."""

    value: Tensor


class Batch(NamedTuple):
    """A statistic of this batch, absent when undefined."""

    value: Tensor


Term = PerObject | Global | Batch


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that are optimised alike.

    Arguments:
        name: Name of the group, used by stages.
        parameters: Its parameters by name.
        factor: Multiplies the learning rate.
        clip: Largest gradient norm of the group, or None.
        decays: Whether weight decay shrinks its matrices, which are those of networks.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    factor: float = 1.0
    clip: float | None = None
    decays: bool = False


@dataclass(frozen=True, slots=True)
class Density:
    """Log densities of objects, shape (B,), how they were obtained, and their error where it was estimated."""

    value: Tensor
    kind: Literal["exact", "bound", "estimate"]
    error: Tensor | None = None


class LatentPosterior(Protocol):
    """A posterior over one latent block: mean and std of shape (B, *block); a point has std 0."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...

    def draw(self, normal: Tensor) -> Tensor:
        """Draws (S, B, *block) from standard normals of that shape."""
        ...


@runtime_checkable
class Conditional(Protocol):
    """p(hidden | seen) of a batch of objects: a pure map of supplied noise."""

    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws without measurement error, model units, shape (n, B, *event) per target."""
        ...


@runtime_checkable
class HasDensity(Protocol):
    """A conditional with densities."""

    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        """Joint log density of the seen target cells of ``values``, shape (B,), model units."""
        ...

    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Marginal log density of each seen target cell, (B, *event) per target; 0 where nothing is scored."""
        ...


@runtime_checkable
class HasLatent(Protocol):
    """A conditional with latent blocks."""

    def latent(self, method: str = "default") -> Mapping[str, LatentPosterior]:
        """The posterior of each block."""
        ...


@runtime_checkable
class HasDecoders(Protocol):
    """A conditional whose latent blocks can be set."""

    def at(self, latents: Mapping[str, Tensor]) -> Conditional:
        """p(x | z), with these blocks (B, *block) instead of their posteriors, and the others at their means."""
        ...


@runtime_checkable
class HasDiscs(Protocol):
    """A model with physics decoders."""

    def discs_of(self) -> Mapping[str, Disc]:
        """The disc of every modality that has one."""
        ...


class AbstractModel(nn.Module, ABC):
    """A conditional distribution over named modalities.

    A family implements ``terms``, ``condition`` and ``groups``; training, prediction and every analysis follow.
    """

    capabilities: frozenset[str] = frozenset()  # among "density", "latent", "generate", "limits"
    blocks: Mapping[str, ModalitySpec]

    @abstractmethod
    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """Unweighted terms of the objective for a batch of scaled tensors, by name ``kind/detail``."""

    @abstractmethod
    def condition(self, context: Observations) -> Conditional:
        """The distribution of everything given the seen cells of ``context``."""

    @abstractmethod
    def groups(self) -> tuple[Group, ...]:
        """Every parameter in exactly one group."""

    @abstractmethod
    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        """Whether p(producible | any cells of readable) is a question for this model."""

    def in_units(self, scaler: Scaler) -> None:  # noqa: B027 - most families never ask what a model unit is
        """Take the map between physical and model units, once, before :meth:`start`; loaded with the state after."""

    def start(self, target: Observations) -> None:  # noqa: B027 - most families need no data to start
        """Initialise from the scaled training table, once, before the first step."""

    def prepare(self, rows: Observations) -> Observations:
        """The scaled rows with what later phases need of them computed once; the same by default."""
        return rows

    def settle(self, rows: Observations) -> None:  # noqa: B027
        """Measure, once after training, what inference on new objects must know of the misfit on scaled rows."""

    def refresh(self) -> None:  # noqa: B027
        """Recompute what is derived from the state, after it was loaded."""

    def population(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each latent block before anything is seen: N(0, I) by default."""
        return {block: (torch.zeros(spec.shape), torch.ones(spec.shape)) for block, spec in self.blocks.items()}

    def closed_form_step(  # noqa: B027
        self,
        context: Observations,
        target: Observations,
        scale: float,
        weights: Mapping[str, float],
        rate: float,
    ) -> None:
        """Move buffers that have a closed-form optimum, before the gradient step; nothing by default.

        Arguments:
            context: What the model sees of the batch.
            target: The batch.
            scale: Training rows per row of the batch.
            weights: Weight of every term of this step.
            rate: In (0, 1].
        """

    def fresh(self, context: Observations) -> Self:
        """A model whose per-object latents belong to exactly these objects; itself where there are none."""
        return self

    def forward(self, context: Observations, target: Observations) -> dict[str, Term]:
        return self.terms(context, target)


class Phase(Frozen):
    """A part of a family's training."""

    name: str
    share: float = Field(default=1.0, gt=0)  # of the steps that the user asks for
    groups: tuple[str, ...] = ()  # parameter groups that move; all when empty
    weights: dict[str, float] = {}  # of terms, over the user's
    gradient: bool = True  # False: only closed-form steps, at the posteriors that inference gives
    prepared: bool = False  # of rows as :meth:`AbstractModel.prepare` gives them, once


class AbstractFamily(Frozen, ABC):
    """A frozen configuration that builds a model."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Parts of training where the user names no stages; one by default."""
        return (Phase(name="train"),)

    @property
    @abstractmethod
    def default_policy(self) -> Policy | None:
        """What is hidden in training when the user does not say; None hides nothing."""

    @abstractmethod
    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        """A new model for this schema and number of training objects."""


def known_method(method: str, *others: str) -> None:
    """Nothing for "default" and the other methods that a conditional has.

    Raises:
        RequestError: it has no such method.
    """
    known = ["default", *others]
    if method not in known:
        raise RequestError(f"Expected method among {known}; got {method!r}.")


@cache
def slot(name: str) -> str:
    """A key for a modality in an ``nn.ModuleDict``, which refuses dots and its own attributes, such as "type".

    Example:
        >>> slot("labels"), slot("sdss.flux"), slot("type")
        ('labels', 'sdss%2Eflux', 'type%')
    """
    key = name.replace("%", "%25").replace(".", "%2E")
    return f"{key}%" if key in dir(nn.ModuleDict()) else key

"""How to train: steps, rates, weights, masking, stages."""

from typing import Literal

from pydantic import Field

from consilience.data.masking import Policy
from consilience.data.schema import Frozen
from consilience.train.balance import Balance
from consilience.train.weights import Weight

__all__ = ["Stage", "TrainConfig"]


class Stage(Frozen):
    """A part of training with its own optimiser, groups of parameters and weights."""

    name: str
    steps: int = Field(ge=1)
    groups: tuple[str, ...] = ()  # parameter groups that move; all when empty
    weights: dict[str, Weight] = {}  # over the configuration's own
    gradient: bool = True  # False: only closed-form steps, at the posteriors that inference gives
    prepared: bool = False  # of rows with what the family computes of them once, such as features of images


class TrainConfig(Frozen):
    """Training options.

    Example:
        >>> TrainConfig(max_steps=100).batch_size
        128
    """

    max_steps: int = Field(default=2000, ge=1)  # gradient steps
    max_epochs: int | None = Field(default=None, ge=1)  # stops earlier when reached
    batch_size: int = Field(default=128, ge=1)  # objects per step
    learning_rate: float = Field(default=1e-2, gt=0)  # Adam's, at its largest
    closed_form_rate: float = Field(default=0.1, gt=0, le=1)  # natural-gradient rate ρ, at its largest
    decay: float = Field(default=0.02, gt=0, le=1)  # both rates fall along a cosine to this fraction
    weight_decay: float = Field(default=0.0, ge=0)  # of networks' matrices; each step shrinks them by rate × this
    clip: float | None = Field(default=None, gt=0)  # largest gradient norm of a group without its own
    validation: float = Field(default=0.1, ge=0, lt=1)  # rows held out for coverage and best weights
    patience: int | None = Field(default=None, ge=1)  # validations without improvement before stopping
    evaluate_every: int = Field(default=100, ge=1)  # steps between validations
    weights: dict[str, Weight] = {}  # by term pattern; the longest match wins
    balance: Balance | None = None  # give modalities the same influence, by their errors on validation rows
    augment: tuple[str, ...] = ()  # square images that every step turns by quarters and mirrors at random
    masking: Policy | Literal["default", "none"] = "default"  # what the context lacks of the target
    stages: tuple[Stage, ...] = ()  # one stage of max_steps when empty
    seed: int = 0
    device: str = "cpu"
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    checkpoint: str | None = None  # directory for checkpoints and history.csv
    checkpoint_every: int = Field(default=200, ge=1)  # steps between checkpoints

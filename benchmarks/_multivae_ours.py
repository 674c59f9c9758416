"""Training steps of ``DisentangledVAE``, in a process of their own; run by ``multivae``.

``python -m benchmarks._multivae_ours IN [all]``: IN as for ``_multivae_peer``; a step for every line of standard input,
with "all" one that decodes every row in all of its bounds, as the peer's does.
"""

import sys
from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks._race import serve
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.models import disentangled_vae
from consilience.models.base import AbstractModel
from consilience.models.bounds import misfits
from consilience.models.disentangled_vae import DisentangledVAE
from consilience.train.loop import adam
from consilience.train.weights import objective

__all__ = ["built", "stepper"]


def built(given: Mapping[str, np.ndarray]) -> tuple[AbstractModel, Observations]:
    """A new model, and the table of its scaled rows in single precision."""
    values = {key.removeprefix("train_"): x for key, x in given.items() if key.startswith("train_")}
    schema = Schema(modalities=tuple(ModalitySpec(name=name, shape=x.shape[1:]) for name, x in values.items()))
    table = Observations.from_arrays(schema, values).to(dtype=torch.float32)
    shared, private, hidden = (int(given[key]) for key in ("shared", "private", "hidden"))
    family = DisentangledVAE(shared=shared, private=dict.fromkeys(values, private), hidden=hidden)
    return family.build(schema, len(table), int(given["seed"])), table


def stepper(given: Mapping[str, np.ndarray], model: AbstractModel, table: Observations) -> Callable[[], None]:
    """What the training loop does in a step: rows, what is hidden of them, terms, gradient, Adam."""
    policy = DisentangledVAE().default_policy
    assert policy is not None, "the family has one"
    optimiser = adam(model.groups(), float(given["rates"][0]))

    def step() -> None:
        target = table[torch.randperm(len(table))[: int(given["batch"])].numpy()]
        terms = model.terms(policy(target, torch.default_generator), target)
        total, _ = objective(terms, dict.fromkeys(terms, 1.0))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    if sys.argv[2:] == ["all"]:
        disentangled_vae.misfits = lambda *given, lots: misfits(*given, lots=False)  # noqa: ARG005 - of the original
    with np.load(sys.argv[1], allow_pickle=False) as arrays:
        contents = dict(arrays)
    serve(lambda given: stepper(given, *built(given)), contents)

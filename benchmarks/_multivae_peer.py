"""MultiVae's DMVAE with our dense networks; run by ``factors`` and ``multivae`` in an environment of its own.

``python -m benchmarks._multivae_peer IN OUT``: IN holds complete modalities ``train_NAME`` and ``test_NAME`` (N, D),
the sizes ``shared``, ``private`` and ``hidden``, the budget ``steps`` of ``batch`` rows, ``seed``, and candidate
``rates`` and ``scales`` of the decoders' normal distributions. OUT receives ``ROWS_mean_BLOCK`` and
``ROWS_std_BLOCK`` (N, Q) of both rows and every block, the ``rate`` and ``scale`` chosen, and ``seconds`` of the last
training.

``python -m benchmarks._multivae_peer IN``: a training step for every line of standard input, see ``_race``.
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._race import serve

try:
    import torchvision  # noqa: F401 - imported by what follows
except RuntimeError:  # PyPI's operators need CUDA, which this torch lacks: they must be there, but are never called
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")

from multivae.data.datasets.base import MultimodalBaseDataset
from multivae.models import DMVAE, DMVAEConfig
from multivae.models.nn.base_architectures import BaseMultilatentEncoder
from multivae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn.base_architectures import BaseDecoder

DECAY = 0.02  # to which share the learning rate falls along a cosine, as ours does
HELD_OUT = 10  # every so manieth row chooses the learning rate and the scale

Given = Mapping[str, np.ndarray]
Tables = dict[str, Tensor]


class Encoder(BaseMultilatentEncoder):
    """Means and log variances of shared and private latents, by two hidden layers."""

    def __init__(self, cells: int, shared: int, private: int, hidden: int) -> None:
        super().__init__()
        self.latent_dim, self.style_dim = shared, private
        self.layers = layers(cells, hidden, 2 * (shared + private))

    def forward(self, x: Tensor) -> ModelOutput:
        sizes = [self.latent_dim, self.style_dim] * 2
        mean, style_mean, log_variance, style_log_variance = self.layers(x).split(sizes, -1)
        return ModelOutput(
            embedding=mean,
            log_covariance=log_variance,
            style_embedding=style_mean,
            style_log_covariance=style_log_variance,
        )


class Decoder(BaseDecoder):
    """The mirrored layers."""

    def __init__(self, cells: int, latents: int, hidden: int) -> None:
        super().__init__()
        self.latent_dim = latents
        self.layers = layers(latents, hidden, cells)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.layers(z))


def layers(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """As ``consilience.blocks.networks.Perceptron`` with two hidden layers."""
    units = nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
    return nn.Sequential(*units)


def built(given: Given, tables: Tables, scale: float) -> DMVAE:
    """The peer's model at its defaults (all weights of divergences 1) but for the networks and the scale."""
    shared, private, hidden = (int(given[key]) for key in ("shared", "private", "hidden"))
    torch.manual_seed(int(given["seed"]))
    config = DMVAEConfig(
        n_modalities=len(tables),
        latent_dim=shared,
        modalities_specific_dim=dict.fromkeys(tables, private),
        decoder_dist_params={name: {"scale": scale} for name in tables},
    )
    encoders = {name: Encoder(x.shape[1], shared, private, hidden) for name, x in tables.items()}
    decoders = {name: Decoder(x.shape[1], shared + private, hidden) for name, x in tables.items()}
    return DMVAE(config, encoders, decoders)


def trained(given: Given, tables: Tables, held_out: Tables | None, rate: float, scale: float) -> tuple[DMVAE, float]:
    """The best model of the peer's trainer, and its loss: on the rows held out where there are any."""
    model, rows, batch = built(given, tables, scale), len(next(iter(tables.values()))), int(given["batch"])
    batch = min(batch, rows)
    epochs = -(-int(given["steps"]) // (rows // batch))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=rows,
            num_epochs=epochs,
            learning_rate=rate,
            scheduler_cls="CosineAnnealingLR",
            scheduler_params={"T_max": epochs, "eta_min": DECAY * rate},
            seed=int(given["seed"]),
            no_cuda=True,
            drop_last=True,
        )
        valid = None if held_out is None else MultimodalBaseDataset(held_out)
        trainer = BaseTrainer(model, MultimodalBaseDataset(tables), valid, config)
        trainer.train()
    return trainer._best_model, trainer.best_train_loss if valid is None else trainer.best_eval_loss


def answer(given: Given) -> dict[str, np.ndarray | float]:
    """Choose the scale, then the rate by the loss on some training rows; train on all; read every row's latents."""
    train, test = rows_of(given, "train"), rows_of(given, "test")
    apart = np.arange(len(next(iter(train.values())))) % HELD_OUT == 0
    some, others = ({name: x[chosen] for name, x in train.items()} for chosen in (~apart, apart))

    @cache
    def loss(rate: float, scale: float) -> float:
        return trained(given, some, others, rate, scale)[1]

    (rate, *_), (scale, *_) = rates, scales = given["rates"].tolist(), given["scales"].tolist()
    if len(scales) > 1:
        scale = min(scales, key=lambda one: loss(rate, one))
    if len(rates) > 1:
        rate = min(rates, key=lambda one: loss(one, scale))
    begun = time.perf_counter()
    model, _ = trained(given, train, None, rate, scale)
    found: dict[str, np.ndarray | float] = {"rate": rate, "scale": scale, "seconds": time.perf_counter() - begun}
    for rows, tables in (("train", train), ("test", test)):
        for block, (mean, log_variance) in latents(model, tables).items():
            found |= {f"{rows}_mean_{block}": mean.numpy(), f"{rows}_std_{block}": (0.5 * log_variance).exp().numpy()}
    return found


@torch.no_grad()
def latents(model: DMVAE, tables: Tables) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and log variances of the blocks, the shared one from all modalities."""
    model.eval()
    mean, log_variance, _, private = model._infer_latent_parameters(MultimodalBaseDataset(tables))
    return {"shared": (mean, log_variance), **{f"private_{name}": found for name, found in private.items()}}


def rows_of(given: Given, rows: str) -> Tables:
    """The modalities of these rows."""
    names = [key.removeprefix(f"{rows}_") for key in given if key.startswith(f"{rows}_")]
    return {name: torch.as_tensor(given[f"{rows}_{name}"], dtype=torch.float32) for name in names}


def stepper(given: Given) -> Callable[[], None]:
    """What the peer's trainer does in a step, without the loading of the batch row by row."""
    tables, batch = rows_of(given, "train"), int(given["batch"])
    model = built(given, tables, float(given["scales"][0])).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=float(given["rates"][0]))

    def step() -> None:
        rows = torch.randperm(len(next(iter(tables.values()))))[:batch]
        loss = model(MultimodalBaseDataset({name: x[rows] for name, x in tables.items()})).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()  # as the trainer does

    return step


if __name__ == "__main__":
    logging.disable(logging.INFO)
    with np.load(sys.argv[1], allow_pickle=False) as arrays:
        contents = dict(arrays)
    if len(sys.argv) == 2:
        serve(stepper, contents)
    else:
        np.savez(sys.argv[2], **answer(contents))

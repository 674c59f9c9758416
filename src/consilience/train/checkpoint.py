"""The state of a run in one safetensors file, written atomically, so that a killed run resumes where it stopped."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from consilience.errors import ModelFileError

__all__ = ["Checkpoint", "load_checkpoint", "optimiser_state", "restore_optimiser", "save_checkpoint", "write_atomic"]

NAME = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run is: the tensors by name and the plain numbers.

    Arguments:
        tensors: ``model/…``, ``best/…`` and ``optimiser/…``.
        meta: Stage, step, history and early-stopping numbers.
        key: Digest of what must not change between runs (configuration, schema, rows).
    """

    tensors: Mapping[str, Tensor]
    meta: dict[str, object]
    key: str


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of a directory, replacing the previous one in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    payload = save(tensors, metadata={"meta": json.dumps(checkpoint.meta), "key": checkpoint.key})
    write_atomic(directory / NAME, payload + hashlib.sha256(payload).digest())


def load_checkpoint(directory: Path, key: str) -> Checkpoint | None:
    """The checkpoint of a directory, or None where there is none yet.

    Raises:
        ModelFileError: the file is damaged, or belongs to another configuration or table.
    """
    path = directory / NAME
    if not path.exists():
        return None
    content = path.read_bytes()
    payload, digest = content[:-32], content[-32:]
    if hashlib.sha256(payload).digest() != digest:
        raise ModelFileError(f"Expected an intact checkpoint; got a damaged {path}. Delete it to start anew.")
    try:
        tensors, metadata = _read(payload)
    except SafetensorError as error:
        raise ModelFileError(f"Expected a safetensors checkpoint; got {path}: {error}. Delete it.") from error
    if metadata["key"] != key:
        raise ModelFileError(
            f"Expected a checkpoint of this configuration and table; got another run's in {path}. "
            "Resume with the same data, family and TrainConfig, or use a new directory."
        )
    return Checkpoint(tensors, json.loads(metadata["meta"]), key)


def _read(payload: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = int.from_bytes(payload[:8], "little")
    metadata = json.loads(payload[8 : 8 + size])["__metadata__"]
    return load(payload), metadata


def optimiser_state(optimiser: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's tensors by parameter name."""
    found = {}
    for name, parameter in named.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            found[f"optimiser/{name}/{key}"] = torch.as_tensor(value)
    return found


def restore_optimiser(
    optimiser: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put saved tensors back into the optimiser."""
    for name, parameter in named.items():
        prefix = f"optimiser/{name}/"
        state = {key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            optimiser.state[parameter] = state


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Model directories: ``weights.safetensors``, ``model.json`` and their checksums; reading executes nothing."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from consilience.data.scaling import Scaler
from consilience.data.schema import Schema, validated
from consilience.errors import ModelFileError, RequestError
from consilience.models import family_from
from consilience.models.base import AbstractFamily, AbstractModel
from consilience.predict.recalibration import Recalibration
from consilience.train.config import TrainConfig
from consilience.typing import PathOrStr

__all__ = ["FORMAT_VERSION", "SavedModel", "read_model", "write_model"]

FORMAT_VERSION = 1
RECORD, WEIGHTS, SUMS = "model.json", "weights.safetensors", "SHA256SUMS"
KEYS = ("family", "schema", "config", "totals", "provenance", "calibration", "history")


@dataclass(frozen=True, slots=True)
class SavedModel:
    """What a model directory holds."""

    members: tuple[AbstractModel, ...]
    family: AbstractFamily
    scaler: Scaler
    config: TrainConfig
    record: Mapping[str, Any]
    recalibration: Recalibration | None


def write_model(
    path: PathOrStr, states: Sequence[Mapping[str, Tensor]], record: Mapping[str, Any], scaler: Scaler
) -> None:
    """Write a model directory beside its place, then move it there; an older model there is replaced.

    Raises:
        RequestError: something that is not a model stands at ``path``.
    """
    path = Path(path)
    if path.exists() and not (path / RECORD).is_file():
        raise RequestError(f"Expected a new path or a model directory to replace; got {path}. Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"members/{k}/{n}": t.detach().cpu() for k, state in enumerate(states) for n, t in state.items()}
    tensors |= {f"scaler/{n}": torch.as_tensor(np.ascontiguousarray(a)) for n, a in scaler.arrays().items()}
    files = {
        RECORD: json.dumps({"format": "consilience", "format_version": FORMAT_VERSION, **record}, indent=1).encode(),
        WEIGHTS: save_tensors({name: tensor.contiguous().clone() for name, tensor in tensors.items()}),
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in {**files, SUMS: sums.encode()}.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_model(path: PathOrStr, device: str = "cpu") -> SavedModel:
    """Read and verify a model directory.

    Raises:
        ModelFileError: a file is missing, truncated, altered, foreign or written by a newer version.
    """
    path = Path(path)
    contents = {name: _content(path, name) for name in (RECORD, WEIGHTS, SUMS)}
    expected = "".join(f"{hashlib.sha256(contents[n]).hexdigest()}  {n}\n" for n in (RECORD, WEIGHTS)).encode()
    version = _version(path, contents[RECORD])
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"Expected format_version <= {FORMAT_VERSION} in {path}; got {version}. Upgrade consilience to read it."
        )
    if contents[SUMS] != expected:
        raise ModelFileError(f"Expected files that match {SUMS}; got altered ones in {path}. Copy it anew.")
    try:
        record = json.loads(contents[RECORD])
        tensors = load_tensors(contents[WEIGHTS])
        _check(record, tensors)
        schema = validated(Schema, record["schema"], where=str(path))
        config = validated(TrainConfig, record["config"], where=str(path))
        family = family_from(record["family"])
        maps = record.get("recalibration")
        recalibration = None if maps is None else validated(Recalibration, maps, where=str(path))
        arrays = {n.removeprefix("scaler/"): t.numpy() for n, t in tensors.items() if n.startswith("scaler/")}
        scaler = Scaler.from_arrays(schema, arrays)
        members = tuple(
            _member(family, schema, total, tensors, k, device) for k, total in enumerate(record["totals"])
        )
    except (SafetensorError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, RequestError) as error:
        raise ModelFileError(f"Expected a consilience model in {path}; got: {error}. Fit and save it anew.") from error
    return SavedModel(members, family, scaler, config, record, recalibration)


def _check(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in {RECORD}")
    totals = record["totals"]
    members = {name.split("/")[1] for name in tensors if name.startswith("members/")}
    whole = isinstance(totals, list) and totals and all(type(total) is int and total >= 0 for total in totals)
    if not whole or members != {str(k) for k in range(len(totals))}:
        raise ValueError(f"totals {totals} for members {sorted(members)}")


def _member(
    family: AbstractFamily, schema: Schema, total: int, tensors: Mapping[str, Tensor], number: int, device: str
) -> AbstractModel:
    prefix = f"members/{number}/"
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    model = family.build(schema, total, seed=0)
    model.to(torch.device(device), next(t.dtype for t in state.values() if t.is_floating_point()))
    model.load_state_dict(state)
    model.refresh()
    model.eval()
    return model


def _content(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise ModelFileError(f"Expected a model directory with {name}; got {path}: {error.strerror}.") from error


def _version(path: Path, content: bytes) -> int:
    try:
        record = json.loads(content)
        if record["format"] != "consilience":
            raise ValueError(f"format {record['format']!r}")
        return int(record["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"Expected a consilience model record in {path / RECORD}; got: {error}.") from error

"""Configuration files: TOML to a family, a training configuration and a schema."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.data.schema import Schema, nearest, validated
from consilience.errors import SchemaError
from consilience.typing import PathOrStr

if TYPE_CHECKING:
    from consilience.models.base import AbstractFamily
    from consilience.train.config import TrainConfig

__all__ = ["Config", "config_from", "read_config", "read_toml"]

TABLES = ("model", "train", "schema")


@dataclass(frozen=True, slots=True)
class Config:
    """What one TOML file says: the family, how to train it, and what the columns mean.

    Arguments:
        family: Table ``[model]``; ``family = "SharedGPLVM"`` and its options.
        train: Table ``[train]``; the defaults where there is none.
        schema: Table ``[schema]``, or the file that ``schema = "file.toml"`` names; None where there is neither.
    """

    family: "AbstractFamily"
    train: "TrainConfig"
    schema: Schema | None


def read_config(path: PathOrStr) -> Config:
    r"""The configuration in a TOML file; a schema file is looked for beside it.

    Raises:
        SchemaError: a missing or malformed file, an unknown table or key (the nearest known one is named).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "quick.toml"
        ...     _ = file.write_text('[model]\nfamily = "SharedGPLVM"\nlatent_dim = 2\n[train]\nmax_steps = 10\n')
        ...     read_config(file).train.max_steps
        10
    """
    return config_from(read_toml(path), where=path)


def config_from(data: Mapping[str, Any], where: PathOrStr) -> Config:
    """The configuration of plain data as read from TOML; ``where`` names the file in messages.

    Raises:
        SchemaError: as :func:`read_config`.

    Example:
        >>> config_from({"model": {"family": "SharedGPLVM"}}, where="a.toml").schema is None
        True
    """
    from consilience.models import family_from
    from consilience.train.config import TrainConfig

    for name in data:
        if name not in TABLES:
            raise SchemaError(f"{where}: Expected the tables {list(TABLES)}; got {name!r}.{nearest(name, TABLES)}")
    for name in ("model", "train"):
        if not isinstance(data.get(name, {}), Mapping):
            raise SchemaError(f"{where}: Expected a table [{name}]; got {data[name]!r}. Write [{name}] and its keys.")
    if "model" not in data:
        raise SchemaError(f'{where}: Expected a table [model]; got none. Write [model] with family = "SharedGPLVM".')
    try:
        family = family_from(data["model"])
    except SchemaError as error:
        raise SchemaError(f"{where}, [model]: {error}") from error
    train = validated(TrainConfig, data.get("train", {}), where=f"{where}, [train]")
    return Config(family, train, _schema(data.get("schema"), where))


def read_toml(path: PathOrStr) -> dict[str, Any]:
    """The plain data of a TOML file.

    Raises:
        SchemaError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SchemaError(f"Expected a TOML file; got {path}: {error}. Check the file.") from error


def _schema(data: object, where: PathOrStr) -> Schema | None:
    if data is None:
        return None
    if isinstance(data, str):
        return Schema.read(Path(where).parent / data)
    if isinstance(data, Mapping) and isinstance(data.get("modalities"), Mapping):
        data = {**data, "modalities": [{"name": name, **spec} for name, spec in data["modalities"].items()]}
    return validated(Schema, data, where=f"{where}, [schema]")

"""Parts of a long study that are done, kept on disk, so that a study which was stopped goes on where it was."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from consilience.data.schema import Frozen
from consilience.errors import DataError
from consilience.io.atomic import atomic_path
from consilience.predict.fitted import Fitted, load
from consilience.typing import FloatArray

__all__ = ["Kept"]

PACKAGES = ("consilience", "torch", "numpy", "scikit-learn")


class Kept:
    """Numbers and arrays of them by name in ``FOLDER/kept.json``, of one set of settings; another set begins anew.

    Arguments:
        folder: Where the file is.
        settings: All that the numbers depend on, with the versions of the packages that make them.

    Raises:
        DataError: the file is damaged.

    Example:
        >>> import tempfile
        >>> from consilience.train.config import TrainConfig
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = Kept(Path(folder), TrainConfig()).part("a", lambda: {"r2": 0.5})
        ...     again = Kept(Path(folder), TrainConfig()).part("a", lambda: {"r2": 0.7})
        ...     other = Kept(Path(folder), TrainConfig(seed=1)).part("a", lambda: {"r2": 0.7})
        >>> [float(one["r2"]) for one in (first, again, other)]
        [0.5, 0.5, 0.7]
    """

    def __init__(self, folder: Path, *settings: Frozen) -> None:
        made_by = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
        text = "\x1f".join([*made_by, *(one.model_dump_json() for one in settings)])
        self.path, self.key = folder / "kept.json", hashlib.sha256(text.encode()).hexdigest()
        self.parts: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                if found["key"] == self.key:
                    self.parts = found["parts"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"Expected finished parts in {self.path}; got {error}. Remove it to begin anew."
                ) from error

    def part(self, name: str, compute: Callable[[], Mapping[str, ArrayLike]]) -> dict[str, FloatArray]:
        """What was kept of this name, or what it is computed to be, then kept: six digits of it."""
        if name not in self.parts:
            self.parts[name] = {key: _rounded(value) for key, value in compute().items()}
            with atomic_path(self.path) as path:
                path.write_text(json.dumps({"key": self.key, "parts": self.parts}, indent=1) + "\n", encoding="utf-8")
        return {key: np.asarray(value, dtype=np.float64) for key, value in self.parts[name].items()}

    def model(self, name: str, train: Callable[[], Fitted]) -> Fitted:
        """The model that was kept under this name, or what ``train`` gives, then kept."""
        folder = self.path.parent / f"models-{self.key[:12]}" / re.sub(r"[^\w-]+", "-", name)
        if folder.is_dir():
            return load(folder)
        fitted = train()
        folder.parent.mkdir(exist_ok=True)
        fitted.save(folder)
        return fitted


def _rounded(value: ArrayLike) -> Any:  # noqa: ANN401 - a number or lists of them
    array = np.asarray(value, dtype=np.float64)
    return np.array([float(f"{number:.6g}") for number in array.ravel()]).reshape(array.shape).tolist()

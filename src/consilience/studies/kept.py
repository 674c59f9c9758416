"""Parts of a long study that are done, kept on disk, so that a study which was stopped goes on where it was."""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from consilience.data.schema import Frozen
from consilience.errors import DataError
from consilience.io.atomic import atomic_path

__all__ = ["Kept"]

PACKAGES = ("consilience", "torch", "numpy", "scikit-learn")


class Kept:
    """Numbers by name in ``FOLDER/kept.json``, of one set of settings; another set begins anew.

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
        >>> first, again, other
        ({'r2': 0.5}, {'r2': 0.5}, {'r2': 0.7})
    """

    def __init__(self, folder: Path, *settings: Frozen) -> None:
        made_by = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
        text = "\x1f".join([*made_by, *(one.model_dump_json() for one in settings)])
        self.path, self.key = folder / "kept.json", hashlib.sha256(text.encode()).hexdigest()
        self.parts: dict[str, dict[str, float]] = {}
        if self.path.is_file():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                if found["key"] == self.key:
                    self.parts = found["parts"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"Expected finished parts in {self.path}; got {error}. Remove it to begin anew."
                ) from error

    def part(self, name: str, compute: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """What was kept of this name, or what it is computed to be, then kept."""
        if name not in self.parts:
            self.parts[name] = {key: float(value) for key, value in compute().items()}
            with atomic_path(self.path) as path:
                path.write_text(json.dumps({"key": self.key, "parts": self.parts}, indent=1) + "\n", encoding="utf-8")
        return self.parts[name]

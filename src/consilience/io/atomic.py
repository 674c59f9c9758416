"""Files that are whole or not there: a temporary file in the same folder, then a rename."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consilience.errors import DataError
from consilience.typing import PathOrStr

__all__ = ["atomic_path"]


@contextmanager
def atomic_path(path: PathOrStr) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well.

    When the block raises, the temporary file is removed and an older file at ``path`` stays as it was.

    Raises:
        DataError: the folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"Expected an existing folder for {path}; got none. Make {path.parent} first.")
    temporary = path.with_name(f".{secrets.token_hex(6)}.{path.name}")  # the suffix stays: some writers look at it
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""A progress bar on a terminal, silence elsewhere."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressBar"]


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Steps done, time left and one number; quiet when standard error is not a terminal.

    Arguments:
        label: What is being done.
        total: Steps in all.
        after: Seconds that pass before it is shown: what takes less needs no bar.
    """

    def __init__(self, label: str, total: int, *, after: float = 0.0) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._progress.add_task(label, total=total, note="")
        self._shown = time.monotonic() + after

    def __enter__(self) -> Self:
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, to: int, note: str = "") -> None:
        """Show that ``to`` steps are done."""
        self._show()
        self._progress.update(self._task, completed=to, note=note)

    def _show(self) -> None:
        if time.monotonic() >= self._shown and not self._progress.live.is_started:
            self._progress.start()

"""Steps of contenders in processes of their own, each in its environment; only the standard library is needed."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Racer", "serve"]

ROOT = Path(__file__).parents[1]


class Racer:
    """A process that does a step whenever it is called, and what memory its steps have taken.

    Arguments:
        command: Interpreter and arguments of a program that calls :func:`serve`.
        threads: That it may use.

    Raises:
        RuntimeError: the process ended; its own error is on standard error.
    """

    def __init__(self, command: Sequence[str | Path], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.before = self.peak = self._answer()

    def __call__(self) -> None:
        assert self.process.stdin is not None, "a pipe"
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.peak = self._answer()

    def __enter__(self) -> "Racer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    @property
    def memory(self) -> float:
        """MiB that model and steps have added to what was resident before."""
        return self.peak - self.before

    def _answer(self) -> float:
        assert self.process.stdout is not None, "a pipe"
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"Expected an answer of {self.process.args}; got none. Read its error above.")
        return float(line)


def serve(build: Callable[[Mapping[str, Any]], Callable[[], None]], given: Mapping[str, Any]) -> None:
    """Do a step of what was built for every line of standard input; answer with the peak of memory, first before it.

    Arguments:
        build: Makes a step of tables ``train_NAME`` (N, D) and sizes.
        given: Those.
    """
    # what is imported at first use is not of the step: one with a few cells goes before
    tables = {name: table[:8, :4] for name, table in given.items() if name.startswith("train_")}
    build({**given, **tables, "hidden": 4})()
    _say(_peak())
    step = build(given)
    for _ in sys.stdin:
        step()
        _say(_peak())


def _say(value: float) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


def _peak() -> float:
    """Most memory resident until now, in MiB; on Linux getrusage counts that of the parent too."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(kilobytes) / 2**10

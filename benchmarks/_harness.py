"""What the benchmarks share: the command line, fair timing, peers, and ``results.json`` with how it was made."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from consilience.plots import Labels, with_unit
from consilience.plots.style import COLOURS, style
from consilience.studies.runner import Results, markdown, meta, write_results

__all__ = ["Lines", "asked", "chosen", "lines", "main", "peer_python", "resumed", "say", "turns"]

PEERS = Path("build/peers")  # environments of their own


def main(name: str, measure: Callable[[int, bool], Results], argv: Sequence[str] | None = None) -> Results:
    """Run ``measure(seed, quick)`` as ``python -m benchmarks.<name>`` and record what it returns.

    Arguments:
        name: Name of the benchmark's module.
        measure: Function of a seed and of whether tiny sizes are enough.
        argv: Arguments instead of the command line's.
    """
    return _run(name, lambda options: measure(options.seed, options.quick), argv)


def resumed(name: str, measure: Callable[[int, bool, Path], Results], argv: Sequence[str] | None = None) -> Results:
    """As :func:`main`, of a function that takes the folder of results too and keeps there what it has done."""
    return _run(name, lambda options: measure(options.seed, options.quick, options.out), argv)


def chosen(
    name: str,
    measure: Callable[[argparse.Namespace], Results],
    options: Callable[[argparse.ArgumentParser], None],
    argv: Sequence[str] | None = None,
) -> Results:
    """As :func:`main`, of a function that takes all options of the command line, among them its own.

    Arguments:
        name: Name of the benchmark's module.
        measure: Function of the options.
        options: Adds its own to the parser.
        argv: Arguments instead of the command line's.
    """
    return _run(name, measure, argv, options)


def _run(
    name: str,
    measure: Callable[[argparse.Namespace], Results],
    argv: Sequence[str] | None,
    own: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Results:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    if own is not None:
        own(parser)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    found = measure(options)
    seconds = time.perf_counter() - begun
    write_results(options.out, found, {"benchmark": name, "quick": options.quick, **meta(options.seed, seconds)})
    console = Console(highlight=False)
    for title, table in found.tables.items():
        console.print(f"{title}\n{markdown(table)}", soft_wrap=True, markup=False)
    for key, value in found.numbers.items():
        console.print(f"{key}: {value}", soft_wrap=True, markup=False)
    return found


def say(line: str) -> None:
    """Show how far a long measurement is, on standard error."""
    Console(stderr=True, highlight=False).print(line, soft_wrap=True, markup=False)


def turns(
    steps: Mapping[str, Callable[[], object]], *, repeats: int, streak: int = 1, warm: int = 2
) -> dict[str, np.ndarray]:
    """Seconds of every call, shape (repeats * streak,), by contender.

    Contenders take turns, so that a busy moment of the machine meets all of them alike. Within a turn the calls follow
    each other as in training; the first, which finds the caches full of what another contender left, is not counted
    where there are more.

    Arguments:
        steps: What is timed, by name.
        repeats: Turns of each.
        streak: Timed calls in a turn.
        warm: Calls of each before timing starts.
    """
    for step in steps.values():
        for _ in range(warm):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            if streak > 1:
                step()
            for _ in range(streak):
                begun = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - begun)
    return {name: np.array(values) for name, values in seconds.items()}


def peer_python(name: str, *packages: str) -> Path:
    """The interpreter of ``build/peers/NAME``, an environment with a peer's packages, made if it is not there."""
    python, ready = PEERS / name / "bin" / "python", PEERS / name / "ready"
    if not ready.is_file():
        subprocess.run([sys.executable, "-m", "venv", PEERS / name], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        ready.touch()
    return python.absolute()


def asked(python: str | Path, program: str, arrays: Mapping[str, Any], *, threads: int) -> dict[str, np.ndarray]:
    """What ``python -m benchmarks.PROGRAM IN OUT`` makes of arrays; IN and OUT are NPZ files.

    Arguments:
        python: An interpreter, of :func:`peer_python`.
        program: Name of a module of this folder.
        arrays: Content of IN.
        threads: That it may use.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, **arrays)
        command = [python, "-m", f"benchmarks.{program}", given, found]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1], env=environment)
        with np.load(found, allow_pickle=False) as result:
            return dict(result)


@dataclass(frozen=True)
class Lines:
    """A panel: points (x, y) by name, joined, on axes that are linear or logarithmic; x may be words."""

    points: Mapping[str, tuple[np.ndarray, np.ndarray]]
    labels: Labels
    scales: tuple[str, str] = ("log", "log")


def lines(panels: Sequence[Lines]) -> Figure:
    """One figure of several panels, each with its legend."""
    with style():
        figure = Figure(figsize=(3.4 * len(panels) + 0.4, 3.2), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set(xscale=panel.scales[0], yscale=panel.scales[1])  # before words, which bring their own ticks
            for (name, (x, y)), colour in zip(panel.points.items(), COLOURS, strict=False):
                axes.plot(x, y, "o-", ms=4, lw=1, color=colour, label=name)
            axes.set(
                title=panel.labels.title,
                xlabel=with_unit(panel.labels.x, panel.labels.x_unit),
                ylabel=with_unit(panel.labels.y, panel.labels.y_unit),
            )
            axes.legend(loc="best")
    return figure

"""Partial information of gates and random tables beside that of dit, in an environment of its own.

Run with ``python -m benchmarks.decomposition [--quick] [--seed N] --out DIR``; the environment is made with pip at
first use.
"""

import time

import numpy as np
from astropy.table import Table

from benchmarks._harness import asked, main, peer_python
from consilience.analysis.decomposition import DEFINITIONS, partial_information
from consilience.studies.runner import Results
from consilience.typing import FloatArray

__all__ = ["measure", "tables"]

# pypoman, which only its geometry needs, wants a C library: without what it asks for, and all else by name
MORE = "boltons debtcollector wrapt lattices networkx numpy==1.26.4 scipy==1.13.1 PLTable wcwidth"
PEER = ("--no-deps", "dit==1.5", *MORE.split())
GATES = {  # s1, s2, t; every line as likely
    "AND": ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1)),
    "XOR": ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)),
    "UNQ": ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)),
    "RDN": ((0, 0, 0), (1, 1, 1)),
}
PARTS = ("shared", "first alone", "second alone", "synergy")


def tables(seed: int, count: int) -> dict[str, FloatArray]:
    """The gates, and random tables of two to four values of each variable."""
    found = {}
    for name, lines in GATES.items():
        table = np.zeros(np.max(lines, axis=0) + 1)
        for line in lines:
            table[line] = 1 / len(lines)
        found[name] = table
    rng = np.random.default_rng(seed)
    for number in range(count):
        shape = rng.integers(2, 5, size=3)
        found[f"random {number}"] = rng.dirichlet(np.full(int(shape.prod()), 0.5)).reshape(shape)
    return found


def measure(seed: int, quick: bool) -> Results:
    """The largest difference of any part, of gates and of random tables."""
    every = tables(seed, 2 if quick else 20)
    begun = time.perf_counter()
    ours = {
        f"{name} {kind}": np.array(partial_information(p, kind)) for name, p in every.items() for kind in DEFINITIONS
    }
    seconds = time.perf_counter() - begun
    theirs = asked(peer_python("dit", *PEER), "_dit_peer", every, threads=1)
    numbers: dict[str, float | int | bool | None] = {"seconds": seconds, "seconds_peer": float(theirs["seconds"])}
    for kind in DEFINITIONS:
        for sort, names in (("gates", list(GATES)), ("random", [name for name in every if name not in GATES])):
            off = [np.abs(ours[f"{name} {kind}"] - theirs[f"{name} {kind}"]).max() for name in names]
            numbers[f"difference_{kind}_{sort}_max"] = float(max(off))
    # BROJA shares all that a minimum leaves: less of it is a minimum that was not reached
    short = [theirs[f"{name} BROJA"][0] - ours[f"{name} BROJA"][0] for name in every]
    numbers |= {"broja_short_of_peer_max": float(max(short)), "broja_peer_short_max": float(-min(short))}
    rows = [
        [name, kind, who, *found[f"{name} {kind}"].round(4).tolist()]
        for name in GATES
        for kind in DEFINITIONS
        for who, found in (("ours", ours), ("dit", theirs))
    ]
    return Results(numbers, {"Bits": Table(rows=rows, names=["gate", "definition", "by", *PARTS])})


if __name__ == "__main__":
    main("decomposition", measure)

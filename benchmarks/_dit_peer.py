"""dit's decompositions of tables in an NPZ file; run by ``benchmarks/decomposition.py`` in an environment of its own.

``python -m benchmarks._dit_peer IN OUT``: IN holds probabilities p(s1, s2, t) by name; OUT receives for each NAME, as
``NAME I_min`` and ``NAME BROJA``, shared, unique of the first, unique of the second, and synergy in bits.
"""

import sys
import time

import dit
import numpy as np

KINDS = {"I_min": dit.pid.PID_WB, "BROJA": dit.pid.PID_BROJA}
PARTS = (((0,), (1,)), ((0,),), ((1,),), ((0, 1),))

given = np.load(sys.argv[1], allow_pickle=False)
found = {}
begun = time.perf_counter()
for name in given.files:
    places = np.argwhere(given[name] > 0)
    outcomes = [tuple(map(int, place)) for place in places]
    table = dit.Distribution(outcomes, [float(given[name][place]) for place in outcomes])
    for kind, decompose in KINDS.items():
        pid = decompose(table, [[0], [1]], [2])
        found[f"{name} {kind}"] = np.array([float(pid[part]) for part in PARTS])
np.savez(sys.argv[2], seconds=time.perf_counter() - begun, **found)

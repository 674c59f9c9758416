"""A small table with gaps, error bars, a limit, groups, units and UCDs."""

import numpy as np
import pytest

from consilience.data.observations import Observations, State
from consilience.data.schema import Grid, ModalitySpec, Schema

ROWS = 12


@pytest.fixture
def schema():
    grid = Grid(start=1000.0, stop=1400.0, size=5, unit="Angstrom")
    labels = (
        {"name": "log_mbh", "unit": "dex(solMass)", "ucd": "phys.mass"},
        {"name": "redshift", "ucd": "src.redshift"},
    )
    return Schema(
        modalities=(
            ModalitySpec(name="spectrum", grid=grid, unit="Jy", ucd="phot.flux.density"),
            ModalitySpec(name="labels", cells=labels),
        )
    )


@pytest.fixture
def obs(schema):
    rng = np.random.default_rng(5)
    spectrum, labels = rng.normal(size=(ROWS, 5)), rng.normal(size=(ROWS, 2))
    spectrum[rng.uniform(size=spectrum.shape) < 0.3] = np.nan
    labels[3] = np.nan
    state = np.full(labels.shape, State.MEASURED)
    state[1, 0] = State.BELOW
    return Observations.from_arrays(
        schema,
        {"spectrum": spectrum, "labels": labels},
        sigma={"spectrum": rng.uniform(0.1, 0.2, size=spectrum.shape)},
        state={"labels": state},
        ids=[f"J{row:02d}" for row in range(ROWS)],
        group=[row // 3 for row in range(ROWS)],
    )

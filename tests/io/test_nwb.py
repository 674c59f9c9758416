"""NWB: what was put into a file comes back binned; a bad file gives one error."""

from datetime import UTC, datetime

import numpy as np
import pytest

import consilience as cs
from consilience.data.observations import State
from consilience.errors import DataError, SchemaError

pynwb = pytest.importorskip("pynwb")

TRIALS = ((1.0, 2.0), (2.5, 3.1), (10.0, 11.0))  # seconds; the second is shorter
UNITS = 4
BINS, WIDTH = 10, 0.1


def session(rng):
    """An NWB file in memory, the spike times of each unit, and position samples."""
    content = pynwb.NWBFile("a session", "fixture", datetime(2026, 1, 1, tzinfo=UTC))
    for start, stop in TRIALS:
        content.add_trial(start_time=start, stop_time=stop)
    spikes = [np.sort(rng.uniform(0, 12, size=400)) for _ in range(UNITS)]
    for times in spikes:
        content.add_unit(spike_times=times)
    moments = np.arange(0, 12, 0.02)
    position = np.stack([np.sin(moments), np.cos(moments)], -1)
    series = pynwb.behavior.SpatialSeries(
        name="track", data=position, timestamps=moments, reference_frame="maze", unit="meters", conversion=1.0
    )
    behaviour = content.create_processing_module("behavior", "where the animal is")
    behaviour.add(pynwb.behavior.Position(spatial_series=series))
    gappy = np.where(moments > 10.5, np.nan, moments)
    content.add_acquisition(
        pynwb.TimeSeries(name="speed", data=gappy, starting_time=0.0, rate=50.0, unit="cm/s", conversion=2.0)
    )
    return content, spikes, moments, position


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    content, spikes, moments, position = session(np.random.default_rng(0))
    path = tmp_path_factory.mktemp("nwb") / "session.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as file:
        file.write(content)
    return path, spikes, moments, position


def schema(**changes):
    bins = cs.TimeBins(width=100.0, unit="ms")
    specs = {
        "spikes": {"shape": (BINS, UNITS), "kind": "count", "column": "units", "time": bins},
        "position": {"shape": (BINS, 2), "unit": "cm", "column": "track", "time": bins},
        "speed": {"shape": (BINS,), "unit": "cm/s", "time": bins},
    }
    for name, change in changes.items():
        specs[name] = specs.get(name, {}) | change
    return cs.Schema(id="trial", modalities=tuple(cs.ModalitySpec(name=name, **spec) for name, spec in specs.items()))


def test_spikes_are_counted_and_series_averaged_in_the_bins_of_each_trial(made):
    path, spikes, moments, position = made
    obs = cs.read(path, schema())
    assert obs.ids.tolist() == ["0", "1", "2"]
    for row, (start, stop) in enumerate(TRIALS):
        edges = start + WIDTH * np.arange(BINS + 1)
        last = round((stop - start) / WIDTH)
        for unit, times in enumerate(spikes):
            expected = np.histogram(times, edges)[0][:last]
            assert obs.parts["spikes"].value[row, :last, unit].tolist() == expected.tolist()
        for step in range(last):
            inside = (moments >= edges[step]) & (moments < edges[step + 1])
            mean = 100 * position[inside].mean(0)
            assert obs.parts["position"].value[row, step] == pytest.approx(mean, abs=1e-9)
    assert (obs.parts["spikes"].state[1, 6:] == State.ABSENT).all()
    assert (obs.parts["spikes"].state[0] == State.MEASURED).all()


def test_a_conversion_is_applied_and_bins_without_a_sample_are_unseen(made):
    path, _, moments, _ = made
    part = cs.read(path, schema()).parts["speed"]
    assert part.value[0, 0] == pytest.approx(2 * moments[(moments >= 1.0) & (moments < 1.1)].mean())
    assert part.seen[2].tolist() == [True] * 5 + [part.seen[2, 5]] + [False] * 4


def test_it_can_be_kept_in_another_format_and_fitted(made, tmp_path):
    obs = cs.read(made[0], schema())
    cs.write(obs, tmp_path / "trials.parquet")
    again = cs.read(tmp_path / "trials.parquet")
    assert again.schema == obs.schema
    for name, part in obs.parts.items():
        assert np.array_equal(part.value, again.parts[name].value, equal_nan=True)
        assert np.array_equal(part.state, again.parts[name].state)
    fitted = cs.fit(cs.GPVAE(length=3.0), again, cs.TrainConfig(max_steps=2, batch_size=2, validation=0))
    found = fitted.sample(again.hide("position"), ["position"], n=3).to_xarray()
    assert found["position_time"].values.tolist() == pytest.approx(np.arange(50.0, 1000.0, 100.0))
    assert found["position_time"].attrs["units"] == "ms"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"spikes": {"shape": (BINS, 7)}}, r"\(10, 7\) for 'spikes'; got \(10, 4\)"),
        ({"position": {"column": "trak"}}, "Did you mean 'track'"),
        ({"speed": {"shape": (4,)}}, "at most 4 bins of 100 ms in 'speed'; got 10 in trial 0"),
    ],
)
def test_what_does_not_fit_is_named(made, change, match):
    with pytest.raises(DataError, match=match):
        cs.read(made[0], schema(**change))


def test_a_schema_must_say_how_to_bin(made):
    with pytest.raises(SchemaError, match="Expected time bins for 'speed'"):
        cs.read(made[0], schema(speed={"time": None}))
    with pytest.raises(SchemaError, match="Expected a schema"):
        cs.read(made[0])
    with pytest.raises(SchemaError, match="converts to 'kg'"):
        cs.read(made[0], schema(position={"unit": "kg"}))


def test_a_file_without_trials_or_units_is_refused(tmp_path):
    bare = pynwb.NWBFile("another", "bare", datetime(2026, 1, 1, tzinfo=UTC))
    path = tmp_path / "bare.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as file:
        file.write(bare)
    with pytest.raises(DataError, match="Expected trials"):
        cs.read(path, schema())


@pytest.mark.parametrize("damage", ["truncated", "text", "missing"])
def test_a_damaged_file_gives_one_error(made, tmp_path, damage):
    path = tmp_path / "broken.nwb"
    if damage == "truncated":
        path.write_bytes(made[0].read_bytes()[:5000])
    elif damage == "text":
        path.write_text("trial,spikes\n1,2\n")
    with pytest.raises(DataError, match="broken.nwb"):
        cs.read(path, schema())

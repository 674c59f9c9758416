"""A table on disk gives the rows that a table in memory has, and trains the same kind of model."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import consilience as cs
from consilience.errors import DataError, RequestError, SchemaError
from constructors import SMALL, mixed, plain

GROUP = 10


def cut(table, path, rows=GROUP):
    """The file of a table, in small row groups."""
    cs.write(table, path)
    pq.write_table(pq.read_table(path), path, row_group_size=rows, write_page_checksum=True)
    return path


@pytest.fixture
def path(tmp_path):
    return cut(plain(rows=95), tmp_path / "a.parquet")


def same(one, other):
    assert one.ids.tolist() == other.ids.tolist()
    for name, part in one.parts.items():
        for field in ("value", "state", "sigma", "coord", "exposure", "extent"):
            mine, theirs = getattr(part, field), getattr(other.parts[name], field)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("factory", [plain, mixed])
def test_any_rows_in_any_order(factory, tmp_path):
    table = factory(rows=95)
    rows = np.random.default_rng(0).permutation(95)[:40]
    found = cs.stream(cut(table, tmp_path / "a.parquet"))
    assert len(found) == 95
    same(found[rows], table[rows])
    assert found[rows].index.tolist() == rows.tolist()
    assert found[rows].total == 95


def test_little_memory_reads_the_same(path):
    small = cs.stream(path, memory=3e-6)
    assert GROUP <= small.source.window < 40
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(95)[:30]
        same(small[rows], plain(rows=95)[rows])
        assert 1 <= len(small.source._held) < 4


def test_splits_are_those_of_the_table_in_memory(path):
    table, found = plain(rows=95), cs.stream(path)
    for mine, theirs in zip(found.split(0.8, seed=3), table.split(0.8, seed=3), strict=True):
        assert mine.ids.tolist() == theirs.ids.tolist()
        same(mine[np.arange(len(mine))], theirs)
    some = found.some(20, seed=0)
    assert len(some) == 20
    assert set(some.ids) < set(table.ids)
    assert found.select("labels")[np.arange(3)].schema.names == ("labels",)


def test_a_model_learns_from_a_table_on_disk(tmp_path):
    path, new = cut(plain(rows=400), tmp_path / "a.parquet", 50), plain(rows=100, seed=1)
    family = cs.SharedGPLVM(latent_dim=2, inducing=12, hidden=8)
    config = cs.TrainConfig(max_steps=80, batch_size=32, validation=0.1)
    errors = []
    for table in (cs.stream(path), plain(rows=400)):
        fit = cs.fit(family, table, config)
        assert fit.provenance["rows"] == 360
        guess = fit.summarise(new.hide("labels"), ["labels"], n=50).statistics["labels"]["mean"]
        errors.append(np.nanmean((guess - new.parts["labels"].value) ** 2, axis=0) ** 0.5)
    assert (errors[0] < 1.2 * errors[1]).all()
    assert (errors[0] < 0.7 * np.nanstd(new.parts["labels"].value, axis=0)).all()


def test_training_resumes_where_it_was(path, tmp_path):
    family = cs.SharedGPLVM(**SMALL)
    ends = []
    for name, steps in (("whole", (20,)), ("cut", (10, 20))):
        for limit in steps:
            config = cs.TrainConfig(
                stages=(cs.Stage(name="train", steps=20),), batch_size=16, validation=0, checkpoint_every=10,
            )  # fmt: skip
            if limit == 10:
                with pytest.raises(KeyboardInterrupt):
                    cs.fit(family, interrupted(cs.stream(path), 12), config, resume=tmp_path / name)
            else:
                reads = []
                counted = cs.stream(path).mapped(lambda obs, reads=reads: reads.append(len(obs)) or obs)
                ends.append(cs.fit(family, counted, config, resume=tmp_path / name))
                # steps of 16 rows: all of them, or those after the checkpoint at step 10
                assert reads.count(16) == (20 if name == "whole" else 10)
    one, other = (fit.members[0].state_dict() for fit in ends)
    assert all(np.array_equal(one[name].numpy(), other[name].numpy()) for name in one)


def interrupted(table, reads):
    """The same table, which stops the training after so many batches."""
    left = [reads]

    def count(obs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return obs

    return table.mapped(count)


def test_what_cannot_be_streamed_says_so(path, tmp_path):
    with pytest.raises(RequestError, match="posterior='encoder'"):
        cs.fit(cs.SharedGPLVM(**SMALL, posterior="map"), cs.stream(path), cs.TrainConfig(max_steps=1, validation=0))
    with pytest.raises(DataError, match="row groups of at most"):
        cs.stream(path, memory=1e-7)
    with pytest.raises(RequestError, match="memory > 0"):
        cs.stream(path, memory=0)
    with pytest.raises(DataError, match="Expected a file at"):
        cs.stream(tmp_path / "b.parquet")
    doubled = tmp_path / "doubled.parquet"
    rows = pq.read_table(path)
    pq.write_table(pa.concat_tables([rows, rows.slice(5, 1)]), doubled, row_group_size=GROUP)
    with pytest.raises(DataError, match=r"unique ids in .*doubled.parquet; got '0-5' again after row 5"):
        cs.stream(doubled)
    bare = tmp_path / "bare.parquet"
    pq.write_table(rows.replace_schema_metadata(None), bare)
    with pytest.raises(SchemaError, match="carries none"):
        cs.stream(bare)


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_file_is_found_at_once(path, damage):
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 3 : len(content) // 3 + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.parquet"):
        cs.stream(path)


def test_an_empty_table_is_refused(path, tmp_path):
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), empty)
    with pytest.raises(DataError, match="empty table"):
        cs.stream(empty)

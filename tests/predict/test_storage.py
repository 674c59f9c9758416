"""Model directories: damage gives one clear error, nothing is executed, writes are whole."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import consilience as cs
from consilience.errors import ModelFileError, RequestError
from consilience.predict.storage import FORMAT_VERSION, RECORD, SUMS, WEIGHTS
from constructors import CONSTRUCTORS, fitted

NAME = "gplvm-private"
FILES = (RECORD, WEIGHTS, SUMS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    fitted(NAME).save(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def answer(fit):
    rows = CONSTRUCTORS[NAME][1](5, seed=1)
    return fit.sample(rows, rows.schema.names, n=2).values


def seal(path):
    """Checksums that fit whatever the files hold now."""
    sums = (f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in (RECORD, WEIGHTS))
    (path / SUMS).write_text("".join(sums))


@settings(max_examples=60)
@given(file=st.sampled_from(FILES), position=st.floats(0, 1, exclude_max=True), change=st.integers(0, 8))
def test_every_truncation_and_flipped_bit_is_refused(saved, tmp_path_factory, file, position, change):
    path = shutil.copytree(saved, tmp_path_factory.mktemp("damaged") / "model")
    content = bytearray((path / file).read_bytes())
    at = int(position * len(content))
    if change == 8:
        del content[at:]
    else:
        content[at] ^= 1 << change
    (path / file).write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        cs.load(path)
    assert "Expected" in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=40)
@given(file=st.sampled_from((RECORD, WEIGHTS)), position=st.floats(0, 1, exclude_max=True), change=st.integers(0, 8))
def test_damage_under_a_matching_checksum_loads_or_is_refused(saved, tmp_path_factory, file, position, change):
    """Even when somebody mended the checksums there is an answer or one clear error, nothing else."""
    path = shutil.copytree(saved, tmp_path_factory.mktemp("sealed") / "model")
    content = bytearray((path / file).read_bytes())
    at = int(position * len(content))
    if change == 8:
        del content[at:]
    else:
        content[at] ^= 1 << change
    (path / file).write_bytes(content)
    seal(path)
    with contextlib.suppress(ModelFileError):
        assert cs.load(path).schema.names


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(copy, file):
    (copy / file).unlink()
    with pytest.raises(ModelFileError, match=f"Expected a model directory with {file}"):
        cs.load(copy)


def test_nothing_is_unpickled(saved, monkeypatch):
    expected = answer(fitted(NAME))

    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    for home, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (np, "load")):
        monkeypatch.setattr(home, name, refuse)
    found = answer(cs.load(saved))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


class Trap:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("file", FILES)
def test_a_pickle_in_disguise_is_not_executed(copy, tmp_path, monkeypatch, file):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    buffer = io.BytesIO()
    torch.save({"x": Trap()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Trap())):
        (copy / file).write_bytes(content)
        if file != SUMS:
            seal(copy)
        with pytest.raises(ModelFileError):
            cs.load(copy)
    assert not (tmp_path / "sprung").exists()


def edited(path, **changes):
    record = json.loads((path / RECORD).read_text())
    (path / RECORD).write_text(json.dumps({**record, **changes}))
    seal(path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "Expected format_version <= .*; got .*Upgrade consilience"),
        ({"format": "other"}, "Expected a consilience model record"),
        ({"format_version": "new"}, "Expected a consilience model record"),
        ({"family": {"family": "SharedGPLM"}}, "Did you mean 'SharedGPLVM'"),
        ({"family": {"family": "SharedGPLVM", "latentdim": 3}}, "Did you mean 'latent_dim'"),
        ({"schema": {"modalities": []}}, "Expected a consilience model"),
        ({"config": {"steps": 3}}, "Did you mean"),
        ({"totals": 3}, "Expected a consilience model"),
        ({"totals": [-1]}, "Expected a consilience model"),
        ({"totals": []}, "Expected a consilience model"),
        ({"totals": [48, 48]}, "Expected a consilience model"),
        ({"totals": ["x"]}, "Expected a consilience model"),
        ({"family": None}, "Expected a consilience model"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(copy, changes, words):
    with pytest.raises(ModelFileError, match=words):
        cs.load(edited(copy, **changes))


@pytest.mark.parametrize("key", ["family", "schema", "config", "totals", "provenance", "calibration", "history"])
def test_a_record_that_lacks_something_is_refused(copy, key):
    record = json.loads((copy / RECORD).read_text())
    del record[key]
    (copy / RECORD).write_text(json.dumps(record))
    seal(copy)
    with pytest.raises(ModelFileError, match=key):
        cs.load(copy)


def test_the_version_is_judged_before_the_checksum(copy):
    """A newer format may have other checksums: the reader is told to upgrade, not that the file is damaged."""
    record = json.loads((copy / RECORD).read_text())
    (copy / RECORD).write_text(json.dumps({**record, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(ModelFileError, match="Upgrade consilience"):
        cs.load(copy)


def test_a_foreign_directory_is_neither_read_nor_replaced(tmp_path):
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work")
    with pytest.raises(ModelFileError, match="Expected a model directory"):
        cs.load(foreign)
    with pytest.raises(RequestError, match="Choose another name"):
        fitted(NAME).save(foreign)
    assert (foreign / "chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("also")
    with pytest.raises(RequestError, match="Choose another name"):
        fitted(NAME).save(tmp_path / "file")
    with pytest.raises(ModelFileError):
        cs.load(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_model_and_nothing_else(copy, monkeypatch):
    from pathlib import Path

    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    whole = Path.write_bytes
    calls = []

    def fail(self, content):
        calls.append(self.name)
        if len(calls) == 2:
            raise OSError("disk full")
        return whole(self, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        fitted("gplvm-encoder").save(copy)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_saving_again_replaces_the_model(copy):
    fitted("gplvm-encoder").save(copy)
    assert cs.load(copy).family == CONSTRUCTORS["gplvm-encoder"][0]
    assert sorted(path.name for path in copy.iterdir()) == sorted(FILES)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]

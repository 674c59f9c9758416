"""A killed run resumes where it stopped, bit for bit; damage and strangers are refused."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import consilience as cs
from consilience.errors import ModelFileError, RequestError
from consilience.train.checkpoint import NAME, Checkpoint, load_checkpoint, save_checkpoint, write_atomic
from constructors import plain

FAMILIES = {
    "encoder": cs.SharedGPLVM(latent_dim=2, inducing=6, hidden=4),
    "gaussian": cs.SharedGPLVM(latent_dim=2, inducing=6, posterior="gaussian"),
}
CHILD = """
import sys, torch
torch.set_num_threads(int(sys.argv[3]))
import consilience as cs
from constructors import plain
from train.test_checkpoint import FAMILIES, config
cs.fit(FAMILIES[sys.argv[1]], plain(), config(), resume=sys.argv[2])
"""


def config(**options):
    first, second = cs.train.config.Stage(name="first", steps=40), cs.train.config.Stage(name="second", steps=60)
    stages = (first, second, cs.train.config.Stage(name="refit", steps=20, gradient=False))
    return cs.TrainConfig(
        batch_size=16, validation=0.2, evaluate_every=20, checkpoint_every=10, stages=stages, **options
    )


def assert_same(found, expected):
    for name, value in expected.members[0].state_dict().items():
        assert torch.equal(found.members[0].state_dict()[name], value), name
    assert list(found.history) == list(expected.history)


@pytest.mark.parametrize("kind", FAMILIES)
def test_kill_9_and_resume_gives_the_weights_of_an_uninterrupted_run(kind, tmp_path):
    folder = tmp_path / "run"
    file = folder / NAME
    here = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([here, os.path.dirname(os.path.dirname(cs.__file__))])
    command = [sys.executable, "-c", CHILD, kind, str(folder), str(torch.get_num_threads())]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not file.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors.decode()
    uninterrupted = cs.fit(FAMILIES[kind], plain(), config())
    resumed = cs.fit(FAMILIES[kind], plain(), config(), resume=folder)
    assert_same(resumed, uninterrupted)
    # what the checkpoint holds now is the end of the run: resuming again changes nothing
    assert_same(cs.fit(FAMILIES[kind], plain(), config(), resume=folder), uninterrupted)


@pytest.mark.parametrize("step", [10, 40, 50, 100, 110])
def test_resuming_from_any_checkpoint_ends_alike(step, tmp_path, monkeypatch):
    """Also at the boundary of the stages, where the optimiser starts anew."""
    import consilience.train.loop as loop

    class Killed(BaseException):
        pass

    def save(directory, checkpoint):
        save_checkpoint(directory, checkpoint)
        if (0, 40, 100)[checkpoint.meta["stage"]] + checkpoint.meta["step"] >= step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save)
        with pytest.raises(Killed):
            cs.fit(FAMILIES["encoder"], plain(), config(), resume=tmp_path)
    assert_same(
        cs.fit(FAMILIES["encoder"], plain(), config(), resume=tmp_path), cs.fit(FAMILIES["encoder"], plain(), config())
    )


def quick(**options):
    return cs.TrainConfig(**{"max_steps": 4, "batch_size": 16, "validation": 0, **options})


def test_another_run_is_refused(tmp_path):
    family = FAMILIES["encoder"]
    cs.fit(family, plain(), quick(), resume=tmp_path)
    other = plain()
    sigma = {"spectrum": 2 * other.parts["spectrum"].sigma}
    values = {name: part.value for name, part in other.parts.items()}
    errors = type(other).from_arrays(other.schema, values, sigma=sigma, ids=other.ids)
    for arguments in (
        (family, plain(seed=1), quick()),
        (family, errors, quick()),
        (family, plain(), quick(max_steps=5)),
        (family, plain(), quick(seed=1)),
        (FAMILIES["gaussian"], plain(), quick()),
    ):
        with pytest.raises(ModelFileError, match="Expected a checkpoint of this configuration and table"):
            cs.fit(*arguments, resume=tmp_path)


CHECKPOINT = Checkpoint({"model/x": torch.arange(6.0)}, {"stage": 0, "step": 3, "best": float("inf")}, "key")


def test_a_checkpoint_round_trips(tmp_path):
    assert load_checkpoint(tmp_path, "key") is None
    save_checkpoint(tmp_path, CHECKPOINT)
    found = load_checkpoint(tmp_path, "key")
    assert torch.equal(found.tensors["model/x"], CHECKPOINT.tensors["model/x"])
    assert found.meta == CHECKPOINT.meta
    with pytest.raises(ModelFileError, match="another run's"):
        load_checkpoint(tmp_path, "other")


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 8))
def test_a_damaged_checkpoint_is_refused(tmp_path_factory, position, flip):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, CHECKPOINT)
    content = bytearray((folder / NAME).read_bytes())
    at = int(position * len(content))
    if flip == 8:
        del content[at:]
    else:
        content[at] ^= 1 << flip
    (folder / NAME).write_bytes(content)
    with pytest.raises(ModelFileError, match="Expected an intact checkpoint; got a damaged"):
        load_checkpoint(folder, "key")


def test_a_write_is_whole_or_not_there(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    write_atomic(file, b"old")

    def fail(*_):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError, match="disk full"):
                write_atomic(file, b"new")
        assert file.read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new"


def test_resume_needs_a_directory():
    from consilience.data.scaling import Scaler
    from consilience.train.loop import train

    table = plain()
    model = FAMILIES["encoder"].build(table.schema, len(table), 0)
    with pytest.raises(RequestError, match="to resume from; got none"):
        train(model, Scaler.fit(table).forward(table), None, FAMILIES["encoder"], quick(), resume=True)

"""A bar on a terminal, silence elsewhere, and none for what is done at once."""

import io

import pytest

import consilience as cs
from consilience.predict import tiles
from consilience.train import progress
from consilience.train.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shown(monkeypatch, stream, clock, after, seconds):
    monkeypatch.setattr("sys.stderr", stream)
    with ProgressBar("objects", 10, after=after) as bar:
        bar.advance(5)
        clock[0] += seconds
        bar.advance(10, "done")
    return stream.getvalue()


def test_a_terminal_sees_label_and_steps(monkeypatch, clock):
    text = shown(monkeypatch, Terminal(), clock, 0.0, 1.0)
    assert "objects" in text and "10/10" in text and "done" in text


def test_what_is_done_before_its_time_shows_nothing_and_what_takes_longer_does(monkeypatch, clock):
    assert "objects" not in shown(monkeypatch, Terminal(), clock, 3.0, 1.0)
    assert "10/10" in shown(monkeypatch, Terminal(), clock, 3.0, 4.0)


def test_a_file_sees_nothing(monkeypatch, clock):
    assert shown(monkeypatch, io.StringIO(), clock, 0.0, 9.0) == ""


def test_answers_about_many_objects_show_how_far_they_are(monkeypatch):
    stream, rows = Terminal(), cs.simulators.gaussian(150, seed=0)
    monkeypatch.setattr("sys.stderr", stream)
    assert len(list(tiles.tiles(rows))) == 3 and stream.getvalue() == ""
    monkeypatch.setattr(tiles, "PATIENCE", 0.0)
    assert len(list(tiles.tiles(rows))) == 3
    assert "objects" in stream.getvalue() and "150/150" in stream.getvalue()

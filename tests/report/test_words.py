"""What a report says in words is what its numbers say."""

import re

import numpy as np
import pytest

from consilience import analysis
from consilience.report.answers import answers
from consilience.report.words import sentences


@pytest.fixture(scope="module")
def rows(world):
    return world.draw(400, seed=60), world.draw(400, seed=61)


def said(fitted, rows, *results):
    train, test = rows
    return answers(fitted, test, train, results), "\n".join(sentences(answers(fitted, test, train, results)))


def test_a_right_model_is_believed_and_its_gains_are_told(fakes, rows):
    found, text = said(fakes.Fake(), rows)
    assert "Error bars hold as far as 400 rows can tell" in text and "no modality was left unheard" in text
    gain = re.search(r"the error is smaller for (mass|redshift) ([\d.]+) times", text)
    y, mean = (
        getattr(found.calibration, name)[:, found.calibration.cells.index(gain[1])] for name in ("truth", "mean")
    )
    assert float(gain[2]) == pytest.approx(y.std() / np.sqrt(np.mean((y - mean) ** 2)), rel=0.05)
    assert "objects look unlike the reference" in text and "4.0 would by chance" in text
    bits, first, second = re.search(
        r"Of the ([\d.]+) bits known about mass, (\d+) % from \w+ and (\d+) % from", text
    ).groups()
    assert int(first) + int(second) == pytest.approx(100, abs=1) and int(first) >= int(second)
    assert float(bits) == pytest.approx(found.attribution.bits_value[:, 0].sum(), rel=0.05)


def test_error_bars_that_are_too_small_are_told_with_level_and_points(fakes, rows):
    found, text = said(fakes.Fake(width=0.6), rows)
    points, level = re.search(r"Error bars do not hold: \w+ is (\d+) points short at ([\d.]+) %", text).groups()
    k = found.calibration.bands.levels.index(float(level) / 100)
    off = 100 * (found.calibration.coverage[:, k] - float(level) / 100)
    assert np.abs(off + int(points)).min() < 0.6


def test_a_model_that_listens_to_nothing_is_told_so(fakes, rows):
    found, text = said(fakes.Fake(prior=True), rows)
    assert "Hardly anything is learned of mass and redshift." in text
    assert "the model has not made everything of" in text and "bits known" not in text
    assert found.attribution is not None


def test_gaps_that_spoil_error_bars_are_named(fakes, rows):
    train, test = rows

    class Deaf(fakes.Fake):
        """Too sure of rows without colour."""

        def _moments(self, obs):
            mean, sd = super()._moments(obs)
            return mean, np.where(obs.parts["colour"].seen.any(axis=1)[:, None], sd, 0.5 * sd)

        def sample(self, obs, targets, **options):
            found = super().sample(obs, targets, **options)
            alone = ~obs.parts["colour"].seen.any(axis=1)
            for name, draws in found.values.items():
                centre = draws.mean(axis=0)
                found.values[name][:, alone] = (centre + 0.5 * (draws - centre))[:, alone]
            return found

    there = np.ones((400, 3), bool)
    some = test.hide_cells({"colour": there & (np.arange(400) % 2 == 0)[:, None]})
    bands = analysis.Bands(least=100)
    apart = analysis.pattern_calibration(Deaf(), some, bands=bands)
    _, text = said(Deaf(), (train, some), apart)
    assert re.search(r"It depends on what is missing: in the 200 rows 'without colour' \w+ is \d+ points short", text)
    right = analysis.pattern_calibration(fakes.Fake(), some, bands=bands)
    assert "This holds for each of the 2 patterns" in said(fakes.Fake(), (train, some), right)[1]


def test_answers_that_were_given_are_not_asked_for_again(fakes, rows, monkeypatch):
    given = analysis.calibration(fakes.Fake(width=2.0), rows[1])
    assert answers(fakes.Fake(), rows[1], None, [given]).calibration is given
    nothing = answers(fakes.Fake(refuse=frozenset(rows[0].schema.names)), rows[1], None, [])
    assert nothing.calibration is None and sentences(nothing) == ()
    assert any(text.startswith("calibration: Expected") for text in nothing.refused)

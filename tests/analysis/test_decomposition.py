"""Partial information: gates whose parts are known, a general optimiser, and models that use their modalities."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from consilience.analysis.decomposition import decomposition, partial_information
from consilience.errors import DataError, RequestError
from consilience.studies.planted import Planted, survey

QUARTER = 0.25


def gate(*outcomes):
    """p(s1, s2, t) of equally probable outcomes."""
    size = np.max(outcomes, axis=0) + 1
    p = np.zeros(size)
    for outcome in outcomes:
        p[outcome] += 1 / len(outcomes)
    return p


AND = gate((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1))
XOR = gate((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0))
RDN = gate((0, 0, 0), (1, 1, 1))
UNQ = gate((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3))  # the target is both bits
ENTROPY = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
REDUNDANT = ENTROPY - 0.5  # what either input tells of AND
EXPECTED = {  # as dit 1.5 has them (PID_WB and PID_BROJA)
    "AND": (AND, (REDUNDANT, 0, 0, 0.5), (REDUNDANT, 0, 0, 0.5)),
    "XOR": (XOR, (0, 0, 0, 1), (0, 0, 0, 1)),
    "RDN": (RDN, (1, 0, 0, 0), (1, 0, 0, 0)),
    "UNQ": (UNQ, (1, 0, 0, 1), (0, 1, 1, 0)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_gates(name):
    p, least, broja = EXPECTED[name]
    np.testing.assert_allclose(partial_information(p, "I_min"), least, atol=1e-6)
    np.testing.assert_allclose(partial_information(p, "BROJA"), broja, atol=1e-4)


def _information(q):
    joint = q.reshape(-1, q.shape[2])
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    return (joint * np.log2(np.maximum(joint, 1e-300) / np.maximum(apart, 1e-300))).sum()


@pytest.mark.parametrize("seed", range(4))
def test_the_least_information_is_that_of_a_general_optimiser(seed):
    p = np.random.default_rng(seed).dirichlet(np.full(12, 0.5)).reshape(2, 2, 3)
    moves = np.zeros((3, *p.shape))  # what leaves p(s1, t) and p(s2, t) as they are
    for t in range(3):
        moves[t, :, :, t] = [[1, -1], [-1, 1]]

    def value(x):
        return _information(np.clip(p + np.tensordot(x, moves, 1), 0, None))

    bounds = [(-min(p[0, 0, t], p[1, 1, t]), min(p[0, 1, t], p[1, 0, t])) for t in range(3)]
    best = min(
        minimize(value, np.random.default_rng(k).uniform(*zip(*bounds, strict=True)), bounds=bounds, tol=1e-12).fun
        for k in range(6)
    )
    found = partial_information(p)
    assert _information(p) - found.synergy == pytest.approx(best, abs=2e-4)
    assert min(found) > -1e-6 and sum(found) == pytest.approx(_information(p), abs=1e-9)


def test_parts_add_up_and_do_not_depend_on_the_order():
    p = np.random.default_rng(0).dirichlet(np.ones(24)).reshape(2, 3, 4)
    for definition in ("I_min", "BROJA"):
        found, turned = (partial_information(one, definition) for one in (p, p.transpose(1, 0, 2)))
        np.testing.assert_allclose(found, np.array(turned)[[0, 2, 1, 3]], atol=1e-4)
        one = p.sum(axis=1)
        apart = one.sum(1, keepdims=True) * one.sum(0)
        assert found[0] + found[1] == pytest.approx((one * np.log2(one / apart)).sum(), abs=1e-9)
    np.testing.assert_allclose(partial_information(1000 * p), partial_information(p), atol=1e-9)


def test_refusals():
    for bad in (np.ones((2, 2)), -np.ones((2, 2, 2)), np.zeros((2, 2, 2)), np.full((2, 2, 2), np.nan)):
        with pytest.raises(DataError, match="probabilities"):
            partial_information(bad)
    with pytest.raises(RequestError, match="definition"):
        partial_information(np.ones((2, 2, 2)), "I_ccs")
    rows = survey(300, seed=1)
    with pytest.raises(DataError, match="fewer bins"):
        decomposition(Planted(), rows, bins=6)
    with pytest.raises(DataError, match="two modalities"):
        decomposition(Planted(), rows, given=rows.hide("labels", "bands", "noise"))
    with pytest.raises(RequestError, match="two bins"):
        decomposition(Planted(), rows, bins=1)


def test_what_instruments_tell_of_labels(tmp_path):
    rows = survey(4000, seed=3)
    found = decomposition(Planted(), rows, ["labels"], n=50)
    pairs = list(zip(found.one, found.other, strict=True))
    spectrum, deaf = pairs.index(("bands", "spectrum")), pairs.index(("bands", "noise"))
    assert found.cells == ("mass", "age") and (found.rows > 3000).all()
    bits = found.bits - found.chance
    assert (bits[:, deaf, :, [0, 2, 3]] < 0.02).all()  # noise tells nothing, not even together
    assert bits[1, spectrum, 0, 0] > 0.3 > 0.15 > bits[1, spectrum, 0, 1]  # mass is in both
    assert bits[1, spectrum, 1, 1] > 0.3 > 0.15 > bits[1, spectrum, 1, 0]  # age in the bands
    assert 0.03 < bits[1, spectrum, 0, 3] < 0.15  # two noisy words are better than one
    assert (found.bits[0, :, :, 0] >= found.bits[1, :, :, 0] - 1e-4).all()  # I_min calls more redundant than BROJA
    np.testing.assert_allclose(found.bits[0].sum(-1), found.bits[1].sum(-1), atol=1e-6)
    found.save(tmp_path)
    assert len(found.table()) == 2 * 3 * 2
    assert json.loads((tmp_path / "decomposition.json").read_text())["cells"] == ["mass", "age"]

"""Every contract runs on every entry of ``tests/constructors.py``."""

import pytest
import torch

from constructors import CONSTRUCTORS, fitted, produced


@pytest.fixture(params=CONSTRUCTORS, scope="session")
def name(request):
    """Of the session, so that all tests of an entry follow each other: each worker fits half of the entries only."""
    return request.param


@pytest.fixture
def fit(name):
    return fitted(name)


@pytest.fixture
def table(name):
    """The training rows of the entry."""
    return CONSTRUCTORS[name][1]()


@pytest.fixture
def fresh(name):
    """Rows that were not trained on: more than one tile, the last one incomplete; without what is never read."""
    rows, fit = CONSTRUCTORS[name][1](80, seed=1), fitted(name)
    return rows.hide(*(m for m in produced(fit) if not fit.answers(frozenset([m]), frozenset(produced(fit)))))


@pytest.fixture
def scored(name):
    """The same rows with all that can be scored."""
    return CONSTRUCTORS[name][1](80, seed=1)


@pytest.fixture
def latent(fit):
    """A model with latents of its own for every object."""
    if "latent" not in fit.capabilities:
        pytest.skip("no latents")
    return fit


@pytest.fixture
def terms():
    """The terms of a model for scaled rows as in training, with the same noise in every call."""

    def terms(model, batch, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.train()
            try:
                return model.terms(batch, batch)
            finally:
                model.eval()

    return terms

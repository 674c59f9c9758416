"""The linear-Gaussian world, made once."""

from types import SimpleNamespace

import pytest

from tests.analysis.fakes import Fake, World


@pytest.fixture(scope="session")
def fakes():
    return SimpleNamespace(World=World, Fake=Fake)


@pytest.fixture(scope="session")
def world():
    return World()

"""Studies are run here to see that they run: what takes long, and is tested elsewhere, is cut short."""

import pytest

from consilience.analysis import baselines, estimators
from consilience.models import deep_start, discs, network_start


@pytest.fixture(autouse=True)
def cut_short(monkeypatch):
    for module in (network_start, deep_start, discs):
        monkeypatch.setattr(module, "STEPS", 15)
    monkeypatch.setattr(estimators, "ROUNDS", 3)
    trees = baselines.BoostedTrees.__init__

    def few(self, *values, **options):
        trees(self, *values, **options)
        self.rounds = 15

    monkeypatch.setattr(baselines.BoostedTrees, "__init__", few)

"""What every test shares: property tests that are the same on every run, and one thread each."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Benchmarks ask for two; kept for all that follows on the same worker, they wait for each other for minutes."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

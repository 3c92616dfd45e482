"""Fixtures for all tests."""

from __future__ import annotations

import helpers.interpreter  # noqa: F401  # isort: skip  # before torch_geometric, which imports Triton
import os
import socket
import sys

import pytest
from helpers.structures import make_batch
from torch_geometric.data import Batch


@pytest.fixture
def batch() -> Batch:
    return make_batch()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(autouse=True)
def own_wandb_service():
    """Forget the W&B service that a test started: it is gone when the next test runs."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def untrusting(monkeypatch):
    """Distrust files, whatever the environment says."""
    monkeypatch.delenv("DENS_TRUST_FILES", raising=False)


@pytest.fixture
def sentinel(tmp_path, monkeypatch):
    """Path of a file that appears if code from a test file runs, which must not happen."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "it_ran"
    sys.modules.pop("users_module", None)

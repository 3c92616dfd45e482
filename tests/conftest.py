"""Fixtures for all tests."""

from __future__ import annotations

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
    """What a test starts of W&B serves no other test's processes, which would find it gone."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture
def untrusting(monkeypatch):
    """Files are not trusted, whatever the environment says."""
    monkeypatch.delenv("DENS_TRUST_FILES", raising=False)


@pytest.fixture
def sentinel(tmp_path, monkeypatch):
    """A file that must not appear."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "it_ran"
    sys.modules.pop("users_module", None)

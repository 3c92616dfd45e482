"""Fixtures for all tests."""

from __future__ import annotations

import os
import socket

import pytest
from structures import make_batch
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

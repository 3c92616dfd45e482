"""Fixtures for all tests."""

from __future__ import annotations

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

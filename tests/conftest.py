"""Fixtures for all tests."""

from __future__ import annotations

import helpers.interpreter  # noqa: F401  # isort: skip  # before torch_geometric, which imports Triton
import os
import socket
import sys
from pathlib import Path

import pytest
from helpers.hosts import why_not

# fixtures that start processes, each of which imports everything anew
STARTING_PROCESSES = {"processes", "submit", "children_env", "resumed", "stock"}


class SkippedFile(pytest.Module):
    """Test file that is not imported, since it cannot run in this environment."""

    def collect(self):
        pytest.skip(why_not(self.path))


def pytest_pycollect_makemodule(module_path, parent):
    return SkippedFile.from_parent(parent, path=module_path) if why_not(module_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests whose fixtures start processes as slow: ``make test`` leaves them to CI."""
    for item in items:
        if STARTING_PROCESSES & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def batch():
    from helpers.structures import make_batch

    return make_batch()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of data that are not ours to publish, so that tests of them cannot run everywhere."""
    if "DENS_DATA" not in os.environ:
        pytest.skip("DENS_DATA names no folder of real data: md17, oc20, oc22, linref")
    return Path(os.environ["DENS_DATA"])


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

"""Fixtures for the tests of the adapter to fairchem-core 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.stock2 import make_config, make_runner, write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "one")


@pytest.fixture(scope="session")
def more_data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "two", n=6, seed=1)


@pytest.fixture
def new_runner(tmp_path, data, more_data):
    """Return a function of settings that builds a runner, as ``fairchem -c`` does."""
    made = []

    def build(sets: int = 1, **settings):
        made.append(tmp_path / f"run{len(made)}")
        src = dict(zip(("oc20", "omat"), (data, more_data), strict=True))
        return make_runner(make_config(made[-1], dict(list(src.items())[:sets]), **settings))

    return build

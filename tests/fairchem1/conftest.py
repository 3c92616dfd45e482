"""Fixtures for the tests of the adapter to fairchem-core 1.10."""

from __future__ import annotations

import pytest
from trainers import trainer_config, write_dataset

from dens.fairchem1 import DeNSTrainer


@pytest.fixture
def dataset(tmp_path) -> str:
    return write_dataset(tmp_path / "train")


@pytest.fixture
def new_trainer(dataset):
    """``new_trainer(dens=..., model=..., ...)`` builds a DeNSTrainer on the small data set."""

    def build(trainer_class=DeNSTrainer, **kwargs):
        return trainer_class(**trainer_config(kwargs.pop("src", dataset), **kwargs))

    return build

"""Fixtures for the tests of the adapter to fairchem-core 1.10."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import submitit

from dens.fairchem1 import DeNSTrainer
from dens.fairchem1 import launch as launcher
from helpers.paths import ROOT, TESTS
from helpers.trainers import trainer_config, write_dataset


@pytest.fixture
def dataset(tmp_path) -> str:
    return write_dataset(tmp_path / "train")


@pytest.fixture
def new_trainer(dataset):
    """Return a function of settings that builds a DeNSTrainer on the small data set."""

    def build(trainer_class=DeNSTrainer, **kwargs):
        return trainer_class(**trainer_config(kwargs.pop("src", dataset), **kwargs))

    return build


@pytest.fixture
def children_env(monkeypatch) -> dict[str, str]:
    """Set the environment of processes that import dens and the helpers of these tests."""
    path = [ROOT, TESTS]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return dict(os.environ)


@pytest.fixture
def submit(children_env, monkeypatch):
    """Return a function of a command line that runs ``--submit`` without SLURM to its end."""
    local = functools.partial(submitit.AutoExecutor, cluster="local")
    monkeypatch.setattr(launcher._cli, "AutoExecutor", local)
    monkeypatch.setattr(launcher.AutoExecutor, "which", staticmethod(lambda: "local"))

    def run(*argv: str) -> None:
        before = set(Path().glob("logs/*/*_result.pkl"))
        launcher.launch(*launcher.parse_args([*argv, "--submit"]))
        deadline = time.monotonic() + 300
        while not (new := set(Path().glob("logs/*/*_result.pkl")) - before):
            assert time.monotonic() < deadline, "the submitted job did not end in five minutes"
            time.sleep(0.2)
        status, value = pickle.loads(new.pop().read_bytes())
        assert status == "success", value

    return run


@pytest.fixture(scope="module")
def processes():
    """Pool of three spawned processes, which serve as ranks of one group after another."""
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool

"""Test that a step on several ranks is that of one process with the whole batch."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
from helpers.paths import ROOT, TESTS
from helpers.ranks2 import on_ranks
from helpers.stock2 import DENS, make_config

ALL = list(range(8))
LADDER = {
    "prob": 0.9,
    "sigma": None,
    "sigma_low": 0.02,
    "sigma_high": 0.2,
    "num_sigmas": 5,
    "granularity": "batch",
    "reduction": "separate",
    "corrupt_ratio": None,
}


@pytest.fixture(scope="module")
def processes():
    """Pool of two spawned processes, which serve as ranks of one group after another."""
    path = os.pathsep.join(map(str, (ROOT, TESTS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([path, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool


@pytest.fixture
def compare(processes, free_port, tmp_path, data):
    """Return a function that compares a step on a split with one in a single process."""

    def run(split, gp="", backbone=None, **settings):
        unit = {"clip_grad_norm": None, **settings.pop("unit", {})}

        def step(name, split, gp=""):
            given = {"unit": unit, "backbone": backbone, **settings}
            config = make_config(tmp_path / name, {"oc20": data}, **given)
            return on_ranks(processes, free_port + (name == "parts"), config, split, gp)

        whole = step("whole", [ALL])
        if callable(split):
            split = split(whole["corrupted"][0])
        parts = step("parts", split, gp)
        assert any(whole["corrupted"][0])
        assert parts["metrics"] == pytest.approx(whole["metrics"], rel=1e-4, abs=1e-6)
        largest = max(abs(g).max() for g in whole["gradients"].values())
        for name, expected in whole["gradients"].items():
            error = abs(parts["gradients"][name] - expected).max()
            assert error <= 1e-5 * max(abs(expected).max(), 1e-2 * largest), name
        return parts["corrupted"]

    return run


def test_uneven_ranks(compare):
    compare([ALL[:3], ALL[3:]])


def test_a_rank_without_a_corrupted_atom(compare):
    def split(sigmas):
        clean = sigmas.index(0.0)
        return [[clean], [i for i in ALL if i != clean]]

    of_first, of_second = compare(split, dens={**DENS, "prob": 0.4})
    assert not any(of_first)
    assert any(of_second)


def test_whole_batches_with_a_ladder_and_sigma_encoding(compare):
    dens = {**DENS, **LADDER}
    sigmas = compare([ALL[:5], ALL[5:]], dens=dens, unit={"sigma_encoding": True}, gradient=True)
    assert all(map(all, sigmas))


@pytest.mark.parametrize("mode", ["allgather", "all_to_all"])
def test_ranks_that_share_a_graph(compare, mode):
    compare([ALL, ALL], gp=mode)

"""The stages of benchmarks.gpu, in small on a CPU: what they write, and what they refuse."""

import json
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from benchmarks.gpu.__main__ import format_result, read_arguments, split_stages
from benchmarks.gpu.steps import choose_ratios

TINY = "--cpu --tiny --backends eager"
STAGES = {
    "numbers": TINY,
    "step": f"{TINY} --sizes S --precisions fp32 --arms ours 'ours DeNS' fairchem",
    "profile": f"{TINY} --sizes S --precisions fp32 --arms 'ours DeNS'",
    "kernels": f"{TINY} --sizes S --precisions fp32 bf16",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """The results of one call that runs all stages but smoke, which trains the demo."""
    folder = tmp_path_factory.mktemp("gpu")
    stages = " -- ".join(f"{name} --out {folder} {options}" for name, options in STAGES.items())
    command = f"{sys.executable} -m benchmarks.gpu {stages}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in STAGES}
    for name, result in found.items():
        assert result["errors"] == {}, name
        assert result["not_reached"] == [], name
        assert result["about"].keys() >= {"hardware", "torch", "commit"}
        assert format_result(result) in done.stdout
    return found


@pytest.mark.slow
def test_the_fast_path_is_exact_in_double(results):
    for name, errors in results["numbers"]["numbers"].items():
        limit = 1e-12 if name.startswith("float64") else 1e-4 if name.startswith("fp32") else 1
        assert max(errors.values()) < limit, name


@pytest.mark.slow
def test_arms_are_timed_in_turns(results):
    (case,) = results["step"]["cases"]
    assert list(case["arms"]) == ["ours", "ours DeNS", "fairchem"]
    assert all(len(arm["ms"]) == case["rounds"] == 3 for arm in case["arms"].values())
    assert list(case["ratios"]) == ["plain: fairchem / ours", "ours: DeNS / plain"]


@pytest.mark.slow
def test_a_profile_covers_the_step(results):
    (profile,) = results["profile"]["profiles"].values()
    assert (
        profile["launches"] == sum(k["calls"] for k in profile["kernels"])
        or (profile["kernels_not_kept"])
    )
    for by in ("operation", "part"):
        assert sum(profile[by].values()) == pytest.approx(1)
    assert {"S2 activation", "SO(2) convolution"} <= profile["operation"].keys()


@pytest.mark.slow
def test_operations_are_those_of_the_plain_ones(results):
    rows = results["kernels"]["rows"]
    assert len(rows) == 30  # operations, ways, precisions
    for row in rows:
        limit = 1e-5 if row["precision"] == "fp32" else 0.05
        assert max(row["errors"].values()) < limit, row
        assert 0 < row["floor_forward_ms"] < row["floor_both_ms"]


def test_ratios_name_the_backends():
    labels = {"fairchem": ("fairchem", "eager")}
    labels |= {f"ours, {name}": ("ours", name) for name in ("eager", "triton")}
    assert choose_ratios(labels, ["eager", "triton"]) == [
        ("plain: fairchem / ours (eager)", "fairchem", "ours, eager"),
        ("plain: fairchem / ours (triton)", "fairchem", "ours, triton"),
        ("ours: eager / triton", "ours, eager", "ours, triton"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "a stage is missing"),
        ("step --cpu --budget 0", "--budget must be > 0, got 0"),
        ("step --cpu --batches M", "--batches must be SIZE:STRUCTURES, as M:16, got 'M'"),
        ("step --cpu --batches M:16", "--batches has no number of structures for L, S"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        read_arguments(options.split())


def test_stages_are_split():
    assert split_stages(["smoke", "--", "step", "--tiny"]) == [["smoke"], ["step", "--tiny"]]

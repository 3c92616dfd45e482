"""Test what a run measures and logs, and that reports read it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.stock2 import DENS, make_config, make_runner

from dens.runs.history import read_history
from dens.runs.report.runs import load_runs, make_panels

WATCH = {"denoising_structures": 4, "figures_every": 1, "gradients_every": 2}


@pytest.fixture(scope="module")
def logged(tmp_path_factory, data, more_data) -> Path:
    """Log folder of a run on two data sets that was stopped after step 3 and resumed."""
    folder = tmp_path_factory.mktemp("logged")
    config = make_config(
        folder, {"oc20": data, "omat": more_data}, unit={"watch": WATCH}, dens=DENS
    )
    for split in ("train", "eval"):
        config["runner"][f"{split}_dataloader"]["num_workers"] = 2
    first = make_runner(config)
    first.run()
    resumed = make_runner(config)
    resumed.load_state(str(Path(first.job_config.metadata.checkpoint_dir) / "step_2"))
    resumed.run()
    return Path(first.job_config.metadata.log_dir)


def lines(folder: Path, split: str) -> list[dict]:
    found = read_history(folder / "metrics.jsonl")
    return [line for line in found if line["split"] == split]


def test_training_steps(logged):
    """Each step is there once, with fairchem's numbers and ours."""
    steps = lines(logged, "train")
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    for line in steps:
        terms = {k: v for k, v in line.items() if k.startswith("loss_")}
        names = [f"loss_{s}_{k}" for s in ("oc20", "omat") for k in ("energy", "forces")]
        assert terms.keys() == {*names, "loss_noise"}
        assert sum(terms.values()) == pytest.approx(line["loss"], rel=1e-5)
        assert {"lr", "grad_norm", "skipped_steps", "corrupted_fraction"} <= line.keys()
        assert line["corrupted_fraction"] == 0 or math.isfinite(line["denoising_pos_mae"])
    assert any("forces_mae" in line and "denoising_pos_mae" in line for line in steps)
    for line in steps[::2]:
        shares = [v for k, v in line.items() if k.startswith("gradient_share_")]
        assert len(shares) == 5
        assert sum(shares) == pytest.approx(1)


def test_evaluations(logged):
    """fairchem's errors of each data set, their means, and denoising by noise level."""
    evaluations = lines(logged, "val")
    assert [line["step"] for line in evaluations] == [1, 3]
    for line in evaluations:
        names = ("oc20.val,oc20_forces,mae", "omat.val,omat_forces,mae")
        assert line["forces_mae"] == pytest.approx(sum(line[name] for name in names) / 2)
        for hidden in ("", "/no_forces"):
            for sigma in ("0.05", "0.10", "0.20"):
                assert line[f"denoising_pos_mae/sigma={sigma}{hidden}"] > 0
    figures = logged / "figures" / "val-00000003"
    assert (figures / "noise_parity.png").is_file()
    assert (figures / "forces_parity.png").is_file()


def test_reports_read_it(logged):
    """By the log folder or the run's, under the run's name."""
    for name in (logged, logged.parent):
        (run,) = load_runs([name])
        assert run.name == "run"
        assert run.config["method"] == "DeNS"
        assert run.config["environment"]["packages"]["fairchem-core"].startswith("2.")
        groups = make_panels([run])
        titles = {panel.metric.title for panel in groups["S2EF"] + groups["Denoising"]}
        assert {"force MAE", "energy MAE", "noise MAE"} <= titles

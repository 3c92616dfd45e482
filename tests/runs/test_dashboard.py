"""The W&B workspace, as far as it can be tested without a server: the library accepts it."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
from helpers.paths import DOCS
from wandb_workspaces.workspaces import Workspace
from wandb_workspaces.workspaces.internal import View

from dens import cli


def dry_run(capsys, *more: str) -> Workspace:
    text = (DOCS / "monitoring.md").read_text()
    (typed,) = re.findall(r"^dens (dashboard .*? --dry-run)", text, re.MULTILINE)
    with pytest.raises(SystemExit) as exit_:
        cli.main([*shlex.split(typed), *more])
    assert not exit_.value.code
    return Workspace._from_model(View.model_validate(json.loads(capsys.readouterr().out)))


def test_dry_run_prints_a_workspace_that_the_library_reads_back(capsys):
    workspace = dry_run(capsys, "--name", "ours", "--baseline", "abc123")
    assert (workspace.entity, workspace.project, workspace.name) == ("TEAM", "PROJECT", "ours")
    groups = ["Baseline against DeNS", "S2EF", "Denoising", "Figures", "Optimisation", "System"]
    assert [section.name for section in workspace.sections] == groups
    assert workspace.runset_settings.baseline_run == "abc123"
    panels = {
        panel.title: panel
        for section in workspace.sections
        for panel in section.panels
        if hasattr(panel, "title")
    }
    assert [metric.name for metric in panels["Force MAE (eV/Å), val"].y] == ["val/forces_mae"]
    assert panels["Validation force MAE (eV/Å)"].groupby is not None
    hidden = panels["Noise variance explained, val, forces hidden"].metric_regex
    assert hidden == "val/denoising_pos_explained_variance/sigma=[0-9.]+/no_forces$"
    assert panels["Parity"].media_keys == ["val/figures/noise_parity", "val/figures/forces_parity"]


def test_without_the_library_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["dashboard", "--entity", "lab", "--project", "oc20", "--dry-run"])
    assert exit_.value.code == 2
    assert "pip install 'fairchem-dens[dashboard]'" in capsys.readouterr().err

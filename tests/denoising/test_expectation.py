"""What `dens check` says about the length of a training with DeNS, and about data without use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.structures import make_structure

from dens.denoising.config import parse_config
from dens.runs.check.corruption import check_denoising
from dens.runs.check.expectation import check_expectation
from dens.runs.check.findings import Findings

BASE = {"prob": 0.5, "sigma": 0.1, "denoising_coefficient": 1.0}


@pytest.mark.parametrize(
    ("settings", "epochs", "said"),
    [
        ({"prob": 0.0}, 4, []),
        ({}, 30, ["950 structures in 30 epochs: DeNS changed the force errors by -5 to +10 %"]),
        ({}, 4, ["950 structures in 4 epochs: DeNS changed the force errors by +15 to +17 %"]),
        (
            {"clean_end": 0.5},
            4,
            ["from epoch 0 to 2 of 4", "by 0 to +3 % in 4 to 8 with half"],
        ),
        ({}, 50, ["950 structures in 50 epochs: between the lengths that were measured"]),
        ({}, 120, ["950 structures in 120 epochs: DeNS lowered the force errors"]),
        (
            {"clean_end": "auto"},
            30,
            ["corrupted from epoch 0 to 15 of 30 (optim.dens)", "by -12 to +1 %"],
        ),
        ({"corrupt_fixed_atoms": "only"}, 30, ["noise for fixed atoms changed the force errors"]),
        ({"clean_start": 0.1, "early_epochs": 5}, 30, ["from epoch 3 to 5 of 30", "changed"]),
    ],
)
def test_what_is_said(settings, epochs, said):
    findings = Findings()
    check_expectation(parse_config({**BASE, **settings}), 950, epochs, False, findings)
    assert [line.level for line in findings.lines] == ["ok"] * len(said)
    for line, part in zip(findings.lines, said, strict=True):
        assert part in line.detail


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"clean_end": "auto"},
            "in none of 4 epochs (clean_end: auto): DeNS has gained nothing in so few",
        ),
        (
            {"clean_start": 0.5, "early_epochs": 1},
            "structures are corrupted in none of 4 epochs (clean_start, clean_end, early_epochs) (",
        ),
    ],
)
def test_a_run_that_corrupts_nothing_is_warned_of(settings, said):
    findings = Findings()
    check_expectation(parse_config({**BASE, **settings}), 950, 4, False, findings)
    (line,) = findings.lines
    assert line.level == "warn"
    assert said in line.detail


def test_what_is_said_of_fine_tuning():
    findings = Findings()
    check_expectation(parse_config(BASE), 200, 80, True, findings)
    (line,) = findings.lines
    assert "200 structures in 80 epochs: DeNS changed the force errors by 0 to +15 %" in line.detail
    assert "in fine-tuning" in line.detail


@pytest.mark.parametrize(
    ("setting", "fixed", "lacking"), [("only", 0, "fixed"), (False, 1, "free")]
)
def test_data_without_an_atom_to_corrupt(setting, fixed, lacking):
    record = make_structure(np.random.default_rng(0))
    record.fixed = torch.full_like(record.fixed, fixed)
    findings = Findings()
    check_denoising(parse_config({**BASE, "corrupt_fixed_atoms": setting}), [record], findings)
    (line,) = findings.lines
    assert line.level == "warn"
    assert f"nothing, but they have hardly a {lacking} atom (optim.dens)" in line.detail

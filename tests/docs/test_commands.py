"""Every command of README and documentation runs, or is checked as far as possible.

`helpers.command_table` says how. A command that is not in it fails, and so does an entry that no
page has. Those of Python are in `test_scripts`, which another worker can run.
"""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser

import pytest
import yaml
from helpers.command_table import TABLE, TRAIN
from helpers.documents import PAGES, commands
from helpers.paths import ROOT
from helpers.workplace import check_command


def typed() -> set[str]:
    return {command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))}


def test_every_command_is_in_the_table():
    assert sorted(typed() - set(TABLE)) == []
    assert sorted(set(TABLE) - typed()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [c for c in TABLE if not c.startswith(("pip", "make")) and "python " not in c],
    ids=lambda c: c[:60],
)
def test_command(workplace, command):
    check_command(workplace, command)


def test_installation_commands_name_what_there_is():
    """Packages and extras of ``pip install`` are those of setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for command in (c for c in TABLE if c.startswith("pip")):
        for extra in re.findall(r"\.\[([\w-]+)\]", command):
            assert extra in extras
        for pin in re.findall(r"\S+==\S+", command):
            assert pin in extras["fairchem1"]


def test_make_demo_trains_and_evaluates():
    plan = ["make", "--always-make", "--dry-run", "demo", "test"]
    done = subprocess.run(plan, cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("dens data demo", "fairchem main.py --config", "dens evaluate", "pytest"):
        assert command in done.stdout


@pytest.mark.slow
def test_the_demo_starts_from_the_error_of_zeros(workplace):
    """As in the demo's table: an untrained noise head predicts almost no noise."""
    (evaluate,) = (c for c in TABLE if c.startswith("dens evaluate --config configs/oc20/eqv2"))
    rows = [line.split() for line in workplace.run(evaluate).output.splitlines() if "_mae " in line]
    table = {row[0]: [float(x.replace("-", "nan")) for x in row[-3:]] for row in rows}
    assert set(table) >= {"energy_mae", "forces_mae", "denoising_pos_mae"}
    zeros, untrained, _ = table["denoising_pos_mae"]
    # the mean of |N(0, 0.025^2)|, 0.020, and a network that starts close to zero
    assert 0.015 < zeros < 0.025
    assert untrained == pytest.approx(zeros, rel=0.2)


@pytest.mark.slow
def test_statistics_are_those_of_the_data(workplace):
    (stats,) = (c for c in TABLE if c.startswith("dens data stats data/mine"))
    workplace.run(stats)
    snippet = yaml.safe_load((workplace.folder / "data/mine/stats.yml").read_text())
    assert snippet["model"]["backbone"]["avg_num_nodes"] == 8
    assert snippet["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"] > 0.1


@pytest.mark.slow
def test_missing_data_name_the_commands_that_get_them(workplace):
    """The OC20 recipe, as typed, ends in one line with the commands of the README."""
    output = workplace.run("fairchem main.py --config configs/oc20/eqv2_dens.yml").output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    for download in (c for c in TABLE if c.startswith("dens data download")):
        assert download in line
    assert f"dens data demo data/demo && {TRAIN}" in line


@pytest.mark.slow
def test_a_run_without_gpu_says_so(workplace):
    output = workplace.run(TRAIN).output
    assert "There is no CUDA device" in output or "cuda" in output

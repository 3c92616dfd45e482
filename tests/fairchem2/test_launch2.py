"""The program ``fairchem`` of dens with fairchem-core 2: its own command line, as without dens."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from fairchem.core.datasets.base_dataset import create_dataset
from helpers.command_runner import Result, run_command
from helpers.labelled import write_traj
from helpers.program import run_data
from helpers.stock2 import make_config

STOCK = "from fairchem.core._cli import main\nmain()\n"


@pytest.fixture
def folder(tmp_path, data) -> Path:
    """A folder with configs of a stock run and of one with DeNS, and fairchem's own program."""
    (tmp_path / "fairchem").write_text(STOCK)
    for name, dens in (("stock", None), ("dens", {"prob": 1.0, "sigma": 0.1})):
        settings = {"denoising_coefficient": 10.0, **dens} if dens else None
        config = make_config(tmp_path / name, {"oc20": data}, dens=settings, steps=2)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def run(folder: Path, arguments: str, program: str = "fairchem") -> Result:
    return run_command(f"{program} {arguments}", folder)


def ending(result: Result) -> tuple[int, str]:
    """The exit status, and the last line that is no traceback's or log's."""
    lines = [line for line in result.output.splitlines() if line.strip()]
    return result.status, re.sub(r"0x\w+", "", lines[-1])


@pytest.mark.parametrize("arguments", ["--help", "", "-c nowhere.yaml", "-c stock.yaml nokey=1"])
def test_help_and_errors_are_those_of_the_stock_program(folder, arguments):
    ours, stock = run(folder, arguments), run(folder, arguments, "python ./fairchem")
    assert ending(ours) == ending(stock)
    if arguments == "--help":
        # a new interpreter says that it finds no GPU, the one that is forked has said so before
        assert ours.output == re.sub("^Warp CUDA warning: .*\\n", "", stock.output)


def test_a_stock_config_trains_as_without_dens(folder):
    ours = run(folder, "-c stock.yaml")
    stock = run(folder, "-c stock.yaml job.timestamp_id=other", "python ./fairchem")
    losses = [re.findall(r"'train/loss': ([\d.]+)", result.output) for result in (ours, stock)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    assert (folder / "stock/run/checkpoints/final/inference_ckpt.pt").exists()


def test_the_older_command_line_trains_too(folder):
    result = run(folder, "main.py --config dens.yaml job.timestamp_id=mine")
    assert result.status == 0, result.output
    run_folder = folder / "dens/mine"
    assert (run_folder / "checkpoints/final/inference_ckpt.pt").exists()
    table = run(folder, f"evaluate --config dens.yaml --checkpoint {run_folder}/checkpoints/final")
    assert table.status == 0, table.output
    for part in ("zeros", "oc20.val,forces,mae", "denoising_pos_mae/sigma=0.10"):
        assert part in table.output
    refused = run(folder, "evaluate --config dens.yaml --checkpoint nowhere")
    assert ending(refused)[1].startswith(
        "error: --checkpoint must be the folder of a step, such as"
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mistake_in_our_settings_is_one_line(folder, ranks):
    more = f"++runner.train_eval_unit.dens.sigmaa=1 job.scheduler.ranks_per_node={ranks}"
    result = run(folder, f"-c dens.yaml {more}".replace("job.sch", "+job.sch"))
    status, last = ending(result)
    assert status == 2, result.output
    assert last.startswith("error: unknown key sigmaa = 1 (runner.train_eval_unit.dens.sigmaa)")


MISTAKES = {
    "job.timestamp_idd=x": "Could not override 'job.timestamp_idd'. To append to your",
    "++job.nokey=1": "Key 'nokey' not in 'JobConfig'",
    "job.device_type=XPU": "Invalid value 'XPU', expected one of [CPU, CUDA]",
    "++runner.max_epoch=3": "unknown key max_epoch = 3 of fairchem.core.components.train."
    "train_runner.TrainEvalRunner: did you mean max_epochs? (runner.max_epoch)",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_in_the_config_of_one_of_our_units_is_one_line(folder, argument):
    status, last = ending(run(folder, f"-c dens.yaml {argument}"))
    assert status == 2
    assert last.startswith("error: ")
    assert MISTAKES[argument] in last


def test_a_config_that_cannot_be_read_is_one_line(folder):
    ours = (folder / "dens.yaml").read_text()
    (folder / "broken.yaml").write_text(ours.replace("runner:", "runner: [", 1))
    (folder / "orphan.yaml").write_text("defaults: [nowhere, _self_]\n" + ours)
    for name, expected in {
        "broken": 'broken.yaml", line ',
        "orphan": "Could not load 'nowhere'",
    }.items():
        status, last = ending(run(folder, f"-c {name}.yaml"))
        assert status == 2
        assert last.startswith(f"error: {name}.yaml: ")
        assert expected in last


def test_converted_data_are_what_fairchem_reads(tmp_path):
    """Labels, constraints, tags and sizes of a data set that our commands wrote."""
    frames = write_traj(tmp_path / "a.traj", 6)
    run_data("convert", tmp_path / "a.traj", "--format", "aselmdb", "--out", tmp_path / "data")
    section = {"format": "ase_db", "splits": {"train": {"src": str(tmp_path / "data")}}}
    section["transforms"] = {"common_transform": {"dataset_name": "oc20"}}
    dataset = create_dataset(section, "train")
    assert len(dataset) == 6
    assert dataset.get_metadata("natoms", [0, 1])[0].tolist() == [10, 10]
    for i in range(6):  # in an order that is drawn
        data = dataset[i]
        atoms = frames[int(str(data.sid).strip("[']").rpartition("-")[2])]
        assert float(data.energy) == pytest.approx(atoms.calc.results["energy"], rel=1e-6)
        np.testing.assert_allclose(data.forces, atoms.calc.results["forces"], rtol=1e-6)
        assert data.fixed.tolist() == [int(n in atoms.constraints[0].index) for n in range(10)]
        assert data.tags.tolist() == atoms.get_tags().tolist()

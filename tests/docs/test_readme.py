"""The README's example, table of options and commands are those that work."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.io import Trajectory
from helpers.paths import ROOT
from helpers.trainers import trainer_config, write_dataset

import dens
from dens.data.demo import make_demo_data
from dens.denoising.config import DeNSConfig
from dens.settings import options_table

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_options_table_is_that_of_the_schema():
    assert options_table(DeNSConfig) in README


def test_example_trainer_trains(tmp_path):
    """The ten-line example, defined as written, takes a step of DeNS and one epoch."""
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 10
    namespace = {}
    exec(example, namespace)
    from fairchem.core.common.registry import registry

    trainer_class = registry.get_trainer_class("my_trainer")
    assert issubclass(trainer_class, dens.DeNSMixin)
    config = trainer_config(
        write_dataset(tmp_path / "data"),
        optim={"scheduler": "Null", "max_epochs": 1, "clip_grad_norm": 10.0},
    )
    trainer = trainer_class(**config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.best_val_metric < 1e9


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder as the README's reader has it, with little demo data."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "main.py").symlink_to(ROOT / "main.py")
    make_demo_data(folder / "data/demo", train_frames=80, val_frames=10)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", "from dens.cli import main; main()"]
    return subprocess.run(
        [*program, *shlex.split(command)[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_oc20_commands_ask_for_the_data(workplace):
    """The OC20 recipe, as typed, gets as far as the data that are not there."""
    recipe = "fairchem main.py --config configs/oc20/eqv2_dens.yml"
    assert recipe in commands()
    done = run(recipe, workplace)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "dataset.train.src = data/oc20/s2ef/2M/train" in line
    for download in [c for c in commands() if c.startswith("dens download-data")]:
        assert download in line
    assert (
        "dens demo-data data/demo && fairchem main.py --config configs/oc20/eqv2_dens_demo.y"
        in line
    )


def test_data_commands_convert_check_and_measure(workplace):
    """The three commands as typed, on trajectories of ten small slabs."""
    (workplace / "trajectories").mkdir()
    for i, metal in enumerate(["Cu", "Ni", "Pd", "Pt", "Au"] * 2):
        slab = fcc111(metal, size=(2, 2, 2), vacuum=6.0, periodic=True)
        with Trajectory(workplace / f"trajectories/{i}.traj", "w") as trajectory:
            for frame in range(3):
                slab.rattle(0.1, seed=10 * i + frame)
                slab.calc = EMT()
                slab.get_forces()
                trajectory.write(slab)
    typed = [c for c in commands() if c.startswith("dens data ")]
    assert [c.split()[2] for c in typed] == ["convert", "check", "stats"]
    for command in typed:
        done = run(command, workplace)
        assert done.returncode == 0, done.stderr
    snippet = yaml.safe_load((workplace / "data/mine/stats.yml").read_text())
    assert snippet["model"]["backbone"]["avg_num_nodes"] == 8
    assert snippet["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"] > 0.1


def test_demo_commands_train_and_evaluate(workplace):
    """The commands that the missing-data line names, on little data; then the printed table."""
    train = "fairchem main.py --config configs/oc20/eqv2_dens_demo.yml"
    shrink = "--optim.max_epochs=1 --optim.num_workers=0"
    done = run(f"{train} {shrink} --run-dir {workplace}", workplace)
    assert done.returncode == 0, done.stderr
    assert "There is no CUDA device" in done.stdout or "cuda" in done.stdout
    (checkpoint,) = workplace.glob("checkpoints/*/checkpoint.pt")
    evaluate = "dens evaluate --config configs/oc20/eqv2_dens_demo.yml"
    done = run(f"{evaluate} --checkpoint {checkpoint} --optim.num_workers=0", workplace)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "_mae " in line]
    table = {row[0]: [float(x.replace("-", "nan")) for x in row[-3:]] for row in rows}
    assert set(table) >= {"energy_mae", "forces_mae", "denoising_pos_mae"}
    zeros, untrained, _ = table["denoising_pos_mae"]
    # the mean of |N(0, 0.025^2)|, 0.020, and a network that starts close to zero
    assert 0.015 < zeros < 0.025
    assert untrained == pytest.approx(zeros, rel=0.2)

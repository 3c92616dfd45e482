"""Every command of README and documentation runs on little data, or is checked as far as possible.

:data:`TABLE` says how. A command that is not in it fails, and so does an entry that no page has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.io import Trajectory
from helpers.calculations import write_calculations
from helpers.command_runner import Result, run_command
from helpers.documents import PAGES, apply_diff, code_blocks, commands
from helpers.equilibria import write_equilibria
from helpers.labelled import slabs, write_oc20
from helpers.paths import CONFIGS, DOCS, README, ROOT
from helpers.stressed import some_frames, write_mptrj
from helpers.written import read

from dens.data.bulk.bulk_demo import make_bulk_demo
from dens.data.demo import make_demo_data
from dens.data.equilibria.slabs import make_relaxed_demo
from dens.data.store.records import data_to_atoms

FEW = (
    "--dataset.train.first_n=16 --dataset.val.first_n=4 --optim.scheduler_params.warmup_epochs=1 "
    "--optim.max_epochs=1 --optim.num_workers=0 --logger=tensorboard"
)
# what stands for the words in capitals
WORDS = {"CONFIG": "configs/oc20/eqv2_dens_demo.yml", "STUDY": "demo"}


@dataclass(frozen=True)
class Run:
    """How a command is run.

    Attributes:
        more: options that make it small.
        needs: commands to run before it.
        says: part of what it prints.
        status: its exit status.
        makes: a file that is there afterwards.
        reason: why it cannot be run to its end; what is left is the nearest check.
    """

    more: str = ""
    needs: tuple[str, ...] = ()
    says: str = ""
    status: int = 0
    makes: str = ""
    reason: str = ""


TRAIN = "fairchem main.py --config configs/oc20/eqv2_dens_demo.yml"
BULK = "fairchem main.py --config configs/mptrj/eqv2_dens_demo.yml --timestamp-id bulk"
PLAIN = "fairchem main.py --config configs/oc20/eqv2_demo.yml --identifier plain"
RELAXING = "fairchem main.py --config examples/relax_demo.yml --identifier relax"
OWN = (
    "dens data convert calculations/ --energy-key REF_energy --forces-key REF_forces "
    "--on-bad skip --out data/own --split by-system --fractions train=0.8,val=0.2"
)
CONVERT = (
    "dens data convert trajectories/ --out data/mine --split by-system --references fit --workers 4"
)
MOLECULES = (
    "dens data convert molecules.npz --labels none --split by-system --group-key smiles "
    "--out data/molecules"
)
RELAXATIONS = (
    "dens data convert relaxations/ --labels none --pairs first-last --split by-system "
    "--out data/relaxations"
)
QM7 = (
    "dens data convert qm7.npz --labels none --pairs pos_mmff94 --split by-system "
    "--group-key smiles --fractions train=0.82,val=0.03,test=0.15 --out data/qm7"
)
TRAIN_QM7 = "fairchem main.py --config configs/qm7/eqv2_morered.yml --identifier qm7"
EXPORT = "dens export checkpoint.pt --out eqv2.pt"
BASELINE_RUN, DENS_RUN = (
    f"fairchem --config configs/oc20/eqv2_{name}.yml --timestamp-id {run} --seed 0 "
    "--dataset.train.first_n=640 --dataset.val.first_n=96 --optim.max_epochs=3 "
    f"--optim.eval_every=24{watch}"
    for name, run, watch in (
        ("demo", "baseline", ""),
        (
            "dens_demo",
            "dens",
            " --optim.watch.denoising_structures=48 --optim.watch.gradients_every=10 "
            "--optim.watch.figures_every=5",
        ),
    )
)
DOWNLOAD = Run(says="wget", reason="downloads many GB; here wget does nothing", status=1)
INSTALL = Run(reason="needs a network and a new environment; .ci/run has them")
SLOW_BENCHMARK = "measures each arm in processes of their own, for minutes"
SLOW_RELAXATIONS = "needs QM7 and a model that was trained on it; tests/ has toy models"
COMPARED = "--every 20 --noise 0.1 0.2 --checkpoint"
RELAXED_QM7, RELAXED_SPEED, RELAXED_FIGURE, *RELAXED_BY_SAMPLERS = (
    f"OMP_NUM_THREADS=1 python -m benchmarks.relaxation --data data/qm7/test {options}"
    for options in (
        "--starts --checkpoint CHECKPOINTS --baselines mmff94 gfn2 --baseline-every 10 "
        "--out result.json",
        "--checkpoint CHECKPOINT --every 10 --speed --baselines mmff94 gfn2",
        "--starts --checkpoint CHECKPOINT --every 10 --figure relaxation.png",
        f"{COMPARED} JT --sampler direct jt itp --name one --out samplers_one.json",
        f"{COMPARED} NOISE --time-checkpoint TIME --sampler as itp --name two "
        "--out samplers_two.json",
        f"{COMPARED} JT --sampler jt --stop-level 0 --patience 300 --max-calls 300 "
        "--name 'one, jt, stop 0' --out samplers_published.json",
    )
)

MORERED_DEMO = "fairchem main.py --config configs/oc20/eqv2_morered_demo.yml --identifier morered"
RELAXED_DEMO = (
    "fairchem main.py --mode run-relaxations --config configs/oc20/eqv2_morered_demo.yml "
    "--checkpoint checkpoints/*-morered/checkpoint.pt"
)
RELAX_SLABS = (
    "OMP_NUM_THREADS=1 python -m benchmarks.relax_slabs --data data/demo_relaxed/val_id "
    "--model demo=DEMO --model ladder=LADDER --labelled data/demo/val_id --out slabs.json"
)
TRAINING_TOO = "trains for minutes; tests/test_relax_benchmarks has toy models"
RELAX_ABLATIONS = (
    "OMP_NUM_THREADS=1 python -m benchmarks.relax_ablations --data data/qm7 --runs runs/ablations "
    "--out ablations.json"
)
RELAX_OC20 = (
    "OMP_NUM_THREADS=1 python -m benchmarks.relax_oc20 --data relaxations/ --runs runs/oc20_relax "
    "--out oc20.json"
)
GPU_KERNELS = "python -m benchmarks.gpu kernels --cpu --tiny --sizes S --ops s2 rotate_in"
ESEN_DEMO = "fairchem main.py --config configs/oc20/esen_dens_demo.yml --timestamp-id esen --seed 0"
CONSERVED = (
    "python -m benchmarks.nve --model direct=A.pt --model gradient=B.pt --structure aspirin.xyz"
)

OF_FAIRCHEM2 = "needs fairchem-core 2; its tests run it there, here 1.10 refuses it"
CONVERT2 = "dens data convert trajectories/ --format aselmdb --out data/own2 --split by-system"
DEMO2 = "configs/fairchem2/esen_dens_demo.yaml"

TABLE = {
    # installation, data and training
    "pip install '.[fairchem1]'": INSTALL,
    "pip install torch": INSTALL,
    "pip wheel --no-deps .": INSTALL,
    "pip install --no-deps fairchem-core==1.10.0": INSTALL,
    "pip install '.[fairchem1-unpinned]'": INSTALL,
    # fairchem-core 2, which is not installed where this runs
    "pip install '.[fairchem2]'": INSTALL,
    "dens data demo data/demo2 --format aselmdb": Run(
        says="data/demo2 already exists", status=2, reason="takes a minute; tests/data make less"
    ),
    f"fairchem main.py --config {DEMO2}": Run(
        says="is a config for fairchem-core 2", status=2, reason=OF_FAIRCHEM2
    ),
    f"fairchem -c {DEMO2} steps=2400 job.seed=1": Run(
        says="error: ", status=2, reason=OF_FAIRCHEM2
    ),
    f"dens evaluate --config {DEMO2} --checkpoint runs/esen_dens_demo/*/checkpoints/final": Run(
        says="checkpoints/final does not exist", status=2, reason=OF_FAIRCHEM2
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.step2 --structures 4 --rounds 12 "
    "--set max_neighbors=20": Run("--help", says="usage:", reason=OF_FAIRCHEM2),
    f"dens check {DEMO2} job.seed=1": Run(
        says="is a config for fairchem-core 2", status=2, reason=OF_FAIRCHEM2
    ),
    "dens inspect uma-s-1p1.pt --dataset oc20": Run(
        says="--dataset oc20 is for checkpoints of fairchem-core 2", status=2, reason=OF_FAIRCHEM2
    ),
    "dens --help": Run(says="dashboard"),
    "dens recipes": Run(says="oc20/eqv2_dens_demo"),
    "dens recipes copy oc20/eqv2_dens my_configs": Run(makes="my_configs/oc20/base.yml"),
    "dens doctor": Run(says="the program of dens"),
    CONVERT2: Run(makes="data/own2/train/data.0000.aselmdb"),
    "dens data check data/own2": Run(
        needs=(
            "dens data convert trajectories/ --format aselmdb --out data/own2 --split by-system",
        ),
        says="ok",
    ),
    "dens data stats data/own2 --out stats2.yaml": Run(
        needs=(
            "dens data convert trajectories/ --format aselmdb --out data/own2 --split by-system",
        ),
        makes="stats2.yaml",
    ),
    **{
        f"make docs{what}": Run(reason="builds the site, for minutes; .ci/run does")
        for what in ("", "-check", "-links")
    },
    "python docs/figures/draw.py": Run("--out pictures", makes="pictures/slab.png"),
    "make demo": Run(
        says="dens evaluate", reason="installs, then trains for minutes; .ci/run does both"
    ),
    "dens data demo data/demo": Run(
        says="data/demo already exists", status=2, reason="takes a minute; tests/data make less"
    ),
    "dens data demo data/demo_bulk --bulk": Run(
        says="data/demo_bulk already exists",
        status=2,
        reason="takes a minute; tests/data make less",
    ),
    BULK: Run(
        f"{FEW} --optim.watch.denoising_structures=0", makes="checkpoints/bulk/checkpoint.pt"
    ),
    "dens evaluate --config configs/mptrj/eqv2_dens_demo.yml "
    "--checkpoint checkpoints/bulk/checkpoint.pt": Run(FEW, needs=(BULK,), says="stress_mae"),
    "python examples/relax_cells.py checkpoints/bulk/checkpoint.pt": Run(
        "--help", says="usage", reason="relaxes six crystals for a minute"
    ),
    "dens data mptrj MPtrj_2022.9_full.json --out data/mptrj": Run(
        "--val 0.4", says="corrected energies; stress, in kbar with VASP's sign"
    ),
    "dens data oc20 s2ef_train_2M --out data/oc20/s2ef/2M_total/train": Run(
        says="0 of them from MD, 3 not"
    ),
    "dens data demo data/demo_relaxed --relaxed": Run(
        says="data/demo_relaxed already exists",
        status=2,
        reason="takes minutes; tests/data make less",
    ),
    "dens data download --task s2ef --split 2M --ref-energy --num-workers 8 "
    "--data-path data/oc20": DOWNLOAD,
    "dens data download --task s2ef --split val_id --ref-energy --num-workers 8 "
    "--data-path data/oc20": DOWNLOAD,
    TRAIN: Run("--optim.max_epochs=1 --optim.num_workers=0", makes="checkpoint.pt"),
    "fairchem main.py --config configs/oc20/eqv2_dens.yml --num-gpus 8 --num-nodes 2 --submit": Run(
        status=2, says="error: ", reason="needs SLURM, GPUs and OC20"
    ),
    "fairchem main.py --config CONFIG --num-gpus 8 --num-nodes 2 --submit --slurm-partition gpu "
    "--slurm-timeout 24": Run(status=2, says="--submit without SLURM", reason="needs SLURM"),
    "fairchem -c CONFIG.yaml job.scheduler.mode=SLURM job.scheduler.num_nodes=2 "
    "job.scheduler.ranks_per_node=8": Run(status=2, says="error: ", reason=OF_FAIRCHEM2),
    "dens check CONFIG --num-gpus 16": Run("--num-gpus 1", says="ready to train"),
    "fairchem main.py --config configs/oc20/eqv2_dens.yml": Run(
        status=2, says="no data there: dataset.train.src = data/oc20", reason="needs OC20"
    ),
    "dens check my_config.yml --num-gpus 16": Run("--num-gpus 1", says="ready to train"),
    # data
    CONVERT: Run("--workers 1", makes="data/mine/train/data.0000.lmdb"),
    "dens data check data/mine/train": Run(needs=(CONVERT,)),
    OWN: Run(says="keep their own energy", makes="data/own/train/data.0000.lmdb"),
    "dens data check data/own": Run(needs=(OWN,)),
    "dens data stats data/own/train --cutoff 12 --max-neighbors 20": Run(
        needs=(OWN,), says="avg_num_nodes"
    ),
    "dens check own.yml": Run(needs=(OWN,), says="ready to train"),
    "fairchem main.py --config own.yml": Run(
        "--optim.num_workers=0 --logger=tensorboard",
        needs=(OWN,),
        makes="checkpoints/*/checkpoint.pt",
    ),
    "dens data stats data/mine/train --cutoff 12 --max-neighbors 20 --out data/mine/stats.yml": Run(
        needs=(CONVERT,), makes="data/mine/stats.yml"
    ),
    "dens data oc20 s2ef_train_all s2ef_md --ref-energy --out data/oc20/s2ef/all_md/train "
    "--workers 8": Run("--workers 1", says="3 of them from MD, 3 not"),
    "dens data md17 aspirin --download --out data/md17/aspirin": Run(
        "--train 4 --val 4", reason="downloads; here the file is there already", says="aspirin"
    ),
    "dens data md17 ethanol --source sgdml_ethanol.npz --train 850 --val 50 "
    "--out data/md17/ethanol": Run(makes="data/md17/ethanol/test/data.0000.lmdb"),
    MOLECULES: Run(
        says="2 structures without a group", makes="data/molecules/train/data.0000.lmdb"
    ),
    "dens data convert relaxed.xyz --labels none --pairs start.xyz --out data/pairs": Run(
        says="12 structures with a start (pos_start); 0 have none"
    ),
    RELAXATIONS: Run(says="of 10 files the last frame is taken"),
    "dens data check data/relaxations": Run(needs=(RELAXATIONS,), says="have a start"),
    "dens data stats data/molecules/train --cutoff 5": Run(
        needs=(MOLECULES,), says="no energies or forces: structures only"
    ),
    "dens data qm7x qm7x/ --duplicates qm7x/DupMols.dat --out data/qm7x": Run(
        says="1 structures of the 1 listed as duplicates: left out"
    ),
    "dens data qm9 dsgdb9nsd.xyz.tar.bz2 --uncharacterized uncharacterized.txt --out data/qm9": Run(
        says="1 structures of the 1 listed as uncharacterized: left out"
    ),
    # relaxation
    QM7: Run(says="40 structures with a start (pos_start); 0 have none"),
    TRAIN_QM7: Run(
        "--optim.scheduler_params.warmup_epochs=1 --optim.max_epochs=2 --logger=tensorboard",
        needs=(TRAIN, QM7),
        says="RMSD after relaxation, sigma = 0.10 Å (Å)",
        makes="checkpoints/*-qm7/checkpoint.pt",
    ),
    "dens relax start.xyz --checkpoint checkpoints/*-qm7/checkpoint.pt --out relaxed.traj": Run(
        needs=(TRAIN_QM7,), says="relaxed.traj: 12 structures", makes="relaxed.traj"
    ),
    "dens relax slab.traj --checkpoint checkpoint.pt --out relaxed_slab.traj": Run(
        needs=(TRAIN,), says="relaxed_slab.traj: 1 structure,", makes="relaxed_slab.traj"
    ),
    "dens relax slab.traj --checkpoint checkpoint.pt --polish bfgs --fmax 0.05 "
    "--out polished.traj": Run(
        "--fmax 50", needs=(TRAIN,), says="polished.traj: 1 structure,", makes="polished.traj"
    ),
    # launcher and long runs
    "fairchem --config configs/oc20/eqv2_dens_demo.yml --mode validate "
    "--checkpoint checkpoint.pt": Run(FEW, needs=(TRAIN,), says="force MAE (eV/Å)"),
    "fairchem --config configs/oc20/eqv2_dens_demo.yml --optim.dens.sigma=0.05 "
    "--logger=tensorboard --quiet": Run(FEW),
    "fairchem --help": Run(says="--optim.dens.sigma=0.15"),
    "dens evaluate --config configs/oc20/eqv2_dens_demo.yml --checkpoint checkpoint.pt": Run(
        "--optim.num_workers=0", needs=(TRAIN,), says="denoising_pos_mae"
    ),
    ESEN_DEMO: Run(FEW, makes="checkpoints/esen/checkpoint.pt"),
    "dens evaluate --config configs/oc20/esen_dens_demo.yml "
    "--checkpoint checkpoints/esen/checkpoint.pt --dataset.val.first_n=48": Run(
        "--dataset.val.first_n=4 --optim.num_workers=0",
        needs=(ESEN_DEMO,),
        says="denoising_pos_mae",
    ),
    "fairchem --config CONFIG --timestamp-id my-run": Run(
        FEW, makes="checkpoints/my-run/checkpoint.pt"
    ),
    "python tests/kill_and_resume.py --steps 200 --kills 20": Run(
        "--steps 10 --kills 1", says="weights, state and"
    ),
    # checkpoints
    "dens inspect checkpoint.pt": Run(needs=(TRAIN,), says="layout"),
    EXPORT: Run(needs=(TRAIN,), makes="eqv2.pt"),
    "fairchem --config configs/oc20/eqv2_dens_demo.yml --checkpoint eqv2.pt": Run(
        FEW, needs=(EXPORT,), says="from forces times -"
    ),
    PLAIN: Run(FEW, makes="checkpoints/*-plain/checkpoint.pt"),
    "fairchem main.py --config examples/finetune_demo.yml "
    "--checkpoint checkpoints/*-plain/checkpoint.pt": Run(FEW, needs=(PLAIN,), says="zero effect"),
    RELAXING: Run(FEW, makes="checkpoints/*-relax/checkpoint.pt"),
    "python examples/relax_demo.py checkpoints/*-relax/checkpoint.pt": Run(
        "--help", needs=(RELAXING,), says="usage", reason="relaxes ten slabs for minutes"
    ),
    # monitoring
    BASELINE_RUN: Run(FEW, makes="logs/tensorboard/baseline/metrics.jsonl"),
    DENS_RUN: Run(FEW, makes="logs/tensorboard/dens/metrics.jsonl"),
    "dens report baseline dens --out report.html": Run(
        needs=(BASELINE_RUN, DENS_RUN), makes="report_files/overview.png"
    ),
    "dens dashboard --entity TEAM --project PROJECT --dry-run": Run(says='"entity"'),
    # studies and benchmarks
    "python -m experiments.run STUDY --jobs 2 --data PATH": Run(
        "--list", says="demo-dens-seed0", reason="trains for hours"
    ),
    "python -m experiments.run STUDY --report": Run(says="", makes="docs/results/demo.png"),
    "python -m experiments.run aspirin --only 'frames200_long-*' --data PATH": Run(
        "--list", says="frames200_long-dens-seed0", reason="trains for hours"
    ),
    "python -m benchmarks.protections": Run("--rounds 1 --steps 1", says="together"),
    "python -m benchmarks.logging --config configs/oc20/eqv2_dens_demo.yml --steps 100 "
    "--dataset.val.src=data/demo/train --dataset.val.first_n=1600 --optim.num_workers=0": Run(
        "--steps 2 --evaluations 1 --dataset.val.first_n=8", says="denoising"
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.curve --steps 300": Run("--steps 6", says="control 2"),
    "OMP_NUM_THREADS=1 python -m benchmarks.neighbors": Run("--rounds 1", says="ratio"),
    CONSERVED: Run(
        "--help", says="--timestep", reason="needs trained models; tests/test_benchmarks starts it"
    ),
    "python -m benchmarks.launches --sizes M L": Run("--sizes S --arms ours", says="dense.py"),
    "OMP_NUM_THREADS=1 python -m benchmarks.regions --size S": Run(
        "--rounds 1", says="SO(2) convolution"
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.inference --size S": Run(
        "--help", says="--size", reason=SLOW_BENCHMARK
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.step --against fairchem --size M --out step.json": Run(
        "--help", says="--against", reason=SLOW_BENCHMARK
    ),
    "OMP_NUM_THREADS=1 python -m benchmarks.scaling --size S --plot scaling.png "
    "--out scaling.json": Run("--help", says="--plot", reason=SLOW_BENCHMARK),
    RELAXED_QM7: Run("--help", says="--baselines", reason=SLOW_RELAXATIONS),
    RELAXED_SPEED: Run("--help", says="--speed", reason=SLOW_RELAXATIONS),
    RELAXED_FIGURE: Run("--help", says="--figure", reason=SLOW_RELAXATIONS),
    **{
        command: Run("--help", says="--sampler", reason=SLOW_RELAXATIONS)
        for command in RELAXED_BY_SAMPLERS
    },
    RELAX_ABLATIONS: Run("--help", says="lmax 3", reason=TRAINING_TOO),
    RELAX_OC20: Run("--help", says="--folds", reason=TRAINING_TOO),
    "python -m benchmarks.relax_oc20 --table oc20.json": Run(
        "--help", says="--table", reason="needs a result of the command before it"
    ),
    "python -m benchmarks.relaxation --table docs/results/relaxation/qm7_*.json": Run(
        says="GFN2-xTB"
    ),
    "fairchem main.py --config configs/oc20/eqv2_dens_relax_demo.yml --identifier ladder": Run(
        FEW, needs=(TRAIN,), makes="checkpoints/*-ladder/checkpoint.pt"
    ),
    MORERED_DEMO: Run(
        "--optim.max_epochs=2 --logger=tensorboard",
        needs=(TRAIN,),
        makes="checkpoints/*-morered/checkpoint.pt",
    ),
    RELAXED_DEMO: Run(
        needs=(MORERED_DEMO,),
        says="average_distance_within_threshold",
        makes="results/*/relaxed_positions.npz",
    ),
    RELAX_SLABS: Run("--help", says="--labelled", reason="needs trained models; takes minutes"),
    "python -m benchmarks.relax_slabs --table docs/results/relaxation/slabs_val_id.json": Run(
        says="morered"
    ),
    "python -m benchmarks.gpu smoke -- step --sizes M L -- kernels --ops s2": Run(
        "--help", says="--backends", reason="needs a GPU; the next one runs on a CPU"
    ),
    GPU_KERNELS: Run(makes="results/gpu/kernels.json"),
    "python -m benchmarks.gpu --table results/gpu/kernels.json": Run(
        needs=(GPU_KERNELS,), says="rotate_in"
    ),
    "python -m benchmarks.kernels_sm90": Run("softmax", says="| softmax, backward | bf16 |"),
    "python -m benchmarks.floors --size M --structures 16": Run(says="SO(2) convolution 2"),
    "python -m benchmarks.data": Run(
        "--help", says="--data", reason="makes and converts 2,000 slabs"
    ),
}


def typed() -> set[str]:
    return {command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))}


def test_every_command_is_in_the_table():
    assert sorted(typed() - set(TABLE)) == []
    assert sorted(set(TABLE) - typed()) == []


class Workplace:
    """A folder as the reader has it, with little data; runs each command once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, Result] = {}
        for name in ("configs", "examples", "main.py", "benchmarks", "experiments", "tests"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "docs").mkdir()
        shutil.copy(ROOT / "docs/results.md", folder / "docs")
        shutil.copytree(ROOT / "docs/results/relaxation", folder / "docs/results/relaxation")
        shutil.copytree(ROOT / "docs/figures", folder / "docs/figures")
        make_demo_data(folder / "data/demo", train_frames=80, val_frames=10)
        (folder / "data/demo2").mkdir()
        make_bulk_demo(folder / "data/demo_bulk", train_frames=20, val_frames=10)
        write_mptrj(folder / "MPtrj_2022.9_full.json", some_frames(3, 2))
        systems = {"train": 8, "val_id": 2, "val_ood": 1}
        make_relaxed_demo(folder / "data/demo_relaxed", systems=systems)
        results = folder / "docs/results/relaxation"
        shutil.copytree(ROOT / "docs/results/relaxation", results, dirs_exist_ok=True)
        self._make_sources()
        _, diff = code_blocks(README.read_text(encoding="utf-8"), "diff")
        stock = (CONFIGS / "oc20/eqv2_demo.yml").read_text(encoding="utf-8")
        (own,) = code_blocks((DOCS / "data.md").read_text(encoding="utf-8"), "yaml")
        (folder / "own.yml").write_text(own, encoding="utf-8")
        (folder / "my_config.yml").write_text(apply_diff(diff, stock), encoding="utf-8")

    def _make_sources(self) -> None:
        (self.folder / "trajectories").mkdir()
        for i, metal in enumerate(["Cu", "Ni", "Pd", "Pt", "Au"] * 2):
            slab = fcc111(metal, size=(2, 2, 2), vacuum=6.0, periodic=True)
            with Trajectory(self.folder / f"trajectories/{i}.traj", "w") as trajectory:
                for frame in range(3):
                    slab.rattle(0.1, seed=10 * i + frame)
                    slab.calc = EMT()
                    slab.get_forces()
                    trajectory.write(slab)
        write_calculations(self.folder / "calculations")
        shutil.copytree(self.folder / "trajectories", self.folder / "relaxations")
        write_equilibria(self.folder)
        slab = data_to_atoms(read(self.folder / "data/demo/val_id")[0])
        ase.io.write(self.folder / "slab.traj", slab)
        for name in ("s2ef_train_all", "s2ef_md", "s2ef_train_2M"):
            lines = [f"random{len(name)},frame{10 * i},-30.25" for i in range(3)]
            write_oc20(self.folder / name, 0, slabs(3), lines)
        (self.folder / "data/md17").mkdir()
        for path, z, n in (
            ("sgdml_ethanol.npz", [6] * 2 + [1] * 6 + [8], 1000),
            ("data/md17/md17_aspirin.npz", [6] * 9 + [1] * 8 + [8] * 4, 12),
        ):
            rng = np.random.default_rng(0)
            pos, energy = 3 * rng.normal(size=(n, len(z), 3)), rng.normal(size=n)
            np.savez(self.folder / path, R=pos, E=energy, F=rng.normal(size=pos.shape), z=z)
        fake = self.folder / "bin/wget"
        fake.parent.mkdir()
        fake.write_text("#!/bin/sh\necho wget $*\n")
        fake.chmod(0o755)

    def run(self, command: str) -> Result:
        """Run a command of the table, after the commands that it needs."""
        if command in self._done:
            return self._done[command]
        how = TABLE[command]
        for other in how.needs:
            self.run(other)
        words = [WORDS.get(word, word) for word in f"{command} {how.more}".split(" ")]
        path = f"PATH={self.folder / 'bin'}:/usr/bin:/bin"
        result = run_command(f"{path} {' '.join(words)}", self.folder)
        if command == TRAIN:
            written = self.folder.glob("checkpoints/*/checkpoint.pt")
            newest = max(written, key=lambda path: path.stat().st_mtime)
            shutil.copy(newest, self.folder / "checkpoint.pt")
        self._done[command] = result
        return result


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("clone"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in TABLE if not c.startswith(("pip", "make"))], ids=lambda c: c[:60]
)
def test_command(workplace, command):
    how = TABLE[command]
    status, output = workplace.run(command)
    assert status == how.status, output
    assert how.says in output
    assert not how.makes or list(workplace.folder.glob(how.makes)), output
    if "--help" in how.more:
        assert all(option in output for option in re.findall(r"--[\w-]+", command))


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

"""
Your own trajectories
=====================

From files of calculations to a model in ASE: convert, check, train, use.
"""

import matplotlib.pyplot as plt
import numpy as np
import yaml
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import Trajectory
from ase.md.langevin import Langevin
from ase.units import fs
from shell import Shell

import dens

shell = Shell()  # a folder of its own, in which the commands run

# %%
# What stands for your calculations
# ---------------------------------
#
# Five short molecular dynamics of an oxygen atom on copper, with ASE's EMT potential, each in a
# file. Any file that ASE reads will do: ``vasprun.xml``, extended XYZ, databases, a folder of all.


def dynamics(seed: int, calculator, every, steps: int = 80):
    """Run molecular dynamics of a slab of nine atoms; ``every(atoms)`` is called each 4 steps."""
    atoms = fcc111("Cu", size=(2, 2, 2), vacuum=6.0, periodic=True)
    add_adsorbate(atoms, "O", height=1.4, position="fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))  # the lowest layer
    atoms.rattle(0.1, seed=seed)
    atoms.calc = calculator
    rng = np.random.default_rng(seed)
    run = Langevin(atoms, 4 * fs, temperature_K=600, friction=0.02, fixcm=False, rng=rng)
    run.attach(lambda: every(atoms), interval=4)
    run.run(steps)


(shell.folder / "calculations").mkdir()
for seed in range(5):
    with Trajectory(shell.folder / f"calculations/{seed}.traj", "w") as trajectory:
        dynamics(seed, EMT(), trajectory.write)

# %%
# Convert
# -------
#
# Whole files go to training or to validation, so that neighbouring frames are never in both. One
# line each says what was taken and what was assumed.

shell(
    "dens data convert calculations/ --out data/mine --split by-system "
    "--fractions train=0.8,val=0.2"
)

# %%
# Check, and statistics
# ---------------------
#
# ``check`` looks for faults with the code that training reads with. ``stats`` writes what a config
# needs: normalisers, and average numbers of atoms and neighbours.

shell("dens data check data/mine", lines=8)
shell("dens data stats data/mine/train --cutoff 5 --max-neighbors 10 --out stats.yml", lines=4)

# %%
# A config of your own
# --------------------
#
# It includes a recipe, and has the data and their statistics in place of the recipe's.

stats = yaml.safe_load((shell.folder / "stats.yml").read_text())
config = {
    "includes": ["configs/oc20/eqv2_dens_demo.yml"],
    "dataset": {
        "train": {"src": "data/mine/train", **stats["dataset"]["train"]},
        "val": {"src": "data/mine/val"},
    },
    "model": {"backbone": {**stats["model"]["backbone"], "num_layers": 1}},
    "optim": {
        "max_epochs": 10,
        "eval_every": 50,
        "num_workers": 0,
        "ema_decay": 0.95,
        "watch": {"denoising_structures": 8, "figures_every": 0},
    },
    "logger": "tensorboard",
}
shell.write("own.yml", yaml.safe_dump(config, sort_keys=False))

# %%
# ``dens check`` reads the config as training does, takes one step, and says what would end or
# spoil the run.

shell("dens check own.yml")

# %%
# Train
# -----

shell("fairchem main.py --config own.yml --timestamp-id own")

# %%
# Use it in ASE
# -------------
#
# The checkpoint is a calculator. Here it runs a new molecular dynamics, and EMT tells the true
# forces of its frames.

model = dens.load_calculator(shell.folder / "checkpoints/own/best_checkpoint.pt", cpu=True)
pairs: list[tuple[np.ndarray, np.ndarray]] = []


def compare(atoms) -> None:
    """Keep the model's forces and EMT's."""
    reference = atoms.copy()
    reference.calc = EMT()
    pairs.append((atoms.get_forces(), reference.get_forces()))


dynamics(100, model, compare, steps=24)
predicted, true = np.stack(pairs, axis=1)
error = np.abs(predicted - true).mean()
print(f"mean absolute error of the forces: {error:.3f} eV/Å; of zeros: {np.abs(true).mean():.3f}")

# sphinx_gallery_thumbnail_number = 1
figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
axes.plot(true.ravel(), predicted.ravel(), ".", alpha=0.5)
axes.axline((0, 0), slope=1, color="gray", linewidth=1)
axes.set(xlabel="EMT, eV/Å", ylabel="model, eV/Å", title="forces in a new run", aspect="equal")
shell.close()

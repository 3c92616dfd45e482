"""
Write your own objective
========================

A method says what a batch becomes and what is learned from it. The trainer does the rest: ranks,
micro-batches, resuming, logs. Here is a method that is not in ``dens``: structures are displaced
at random, and their energies follow from the forces by a Taylor expansion.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from shell import ROOT, Shell
from torch_geometric.data import Batch, Data

from dens.data.demo import make_demo_data
from dens.objective import Progress

sys.path.insert(0, str(ROOT / "examples"))
from taylor_objective import TaylorObjective

# %%
# The method
# ----------
#
# ``draws`` makes all random numbers, of a stream for each structure. ``apply`` changes the batch.
# ``targets`` narrows or replaces what is learned: forces of displaced structures are unknown, so
# their rows do not count. The rest says what is logged.
#
# .. literalinclude:: ../../examples/taylor_objective.py
#    :language: python

# %%
# Is it right?
# ------------
#
# Before training on it: the labels it makes, against EMT itself. The error of the energy must be of
# second order in the displacement.


def batch_of(atoms) -> Batch:
    """Return a batch of one structure, with EMT's labels."""
    data = Data(
        pos=torch.tensor(atoms.positions),
        energy=torch.tensor([atoms.get_potential_energy()]),
        forces=torch.tensor(atoms.get_forces()),
        natoms=len(atoms),
        fixed=torch.zeros(len(atoms)),
    )
    return Batch.from_data_list([data])


slab = fcc111("Cu", size=(2, 2, 2), vacuum=6.0, periodic=True)
add_adsorbate(slab, "O", height=1.4, position="fcc")
slab.rattle(0.1, seed=0)
slab.calc = EMT()
energy = slab.get_potential_energy()
scales, plain, taylor = [0.005, 0.01, 0.02, 0.04, 0.08], [], []
for scale in scales:
    objective = TaylorObjective(prob=1.0, scale=scale)
    errors = []
    for seed in range(20):
        stream = torch.Generator().manual_seed(seed)
        batch = batch_of(slab)
        step = Progress(epoch=0, max_epochs=1, structures=1)
        objective.apply(batch, objective.draws(batch, [stream], stream), step)
        moved = slab.copy()
        moved.positions = batch.pos.numpy()
        moved.calc = EMT()
        true = moved.get_potential_energy()
        errors.append((abs(true - energy), abs(true - batch.energy.item())))
    first, second = np.mean(errors, axis=0)
    plain.append(first)
    taylor.append(second)
print("slopes:", *(f"{np.polyfit(np.log(scales), np.log(e), 1)[0]:.2f}" for e in (plain, taylor)))

# sphinx_gallery_thumbnail_number = 1
figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
axes.loglog(scales, plain, "o-", label="energy of the original")
axes.loglog(scales, taylor, "o-", label="first-order energy")
axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
axes.minorticks_off()
axes.set(xlabel="displacement, Å", ylabel="error of the label, eV")
axes.legend()

# %%
# The trainer
# -----------
#
# A trainer names the class and reads its settings.
#
# .. literalinclude:: ../../examples/taylor_trainer.py
#    :language: python
#
# The config names it by its dotted path; the folder of the module must be in ``PYTHONPATH``.

shell = Shell(python_path=[ROOT / "examples"])
make_demo_data(shell.folder / "data/demo", train_frames=40, val_frames=10)
config = {
    "includes": ["configs/oc20/eqv2_demo.yml"],
    "trainer": "taylor_trainer.TaylorTrainer",
    "optim": {
        "taylor": {"prob": 0.5, "scale": 0.02},
        "max_epochs": 3,
        "num_workers": 0,
        "scheduler_params": {"warmup_epochs": 1},
    },
    "logger": "tensorboard",
}
shell.write("taylor.yml", yaml.safe_dump(config, sort_keys=False))
shell("fairchem --config taylor.yml --timestamp-id taylor", grep="at epoch")

# %%
# The log has the metric of the method, and the losses of energy and forces:

log = shell.read("logs/tensorboard/taylor/metrics.jsonl")
last = [line for line in log if line["split"] == "train" and "denoising_energy_mae" in line][-1]
print({name: last[name] for name in ("step", "denoising_energy_mae", "loss_energy", "loss_forces")})

# %%
# For good
# --------
#
# ``tests/test_objectives.py`` has the contract that every method passes, this one too: the random
# numbers of a structure depend on neither its place nor its batch; fixed atoms stay; fields have
# the levels that they declare; targets that are not counted reach no gradient.

shell.close()

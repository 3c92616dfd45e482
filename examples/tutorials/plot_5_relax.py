"""
Relax by denoising
==================

MoreRed learns from relaxed structures alone, neither energies nor forces: which noise a structure
has. Taking it away relaxes. Here are two small models, for molecules and for slabs.
"""

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from ase.build import add_adsorbate, fcc111, minimize_rotation_and_translation, molecule
from ase.calculators.emt import EMT
from ase.collections import g2
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from shell import Shell

import dens

shell = Shell()  # a folder of its own, in which the commands run
rng = np.random.default_rng(0)
common = (
    "--logger=tensorboard --seed 0 --optim.watch.gradients_every=0 --optim.ema_decay=0.95 "
    "--optim.watch.figures_every=0 --optim.watch.denoising_structures=4 "
    "--model.backbone.num_layers=2"
)

# %%
# Molecules
# ---------
#
# Relaxed structures in any file that ASE reads: here twelve small molecules of the G2 set.

known = [molecule(name) for name in g2.names]
known = [m for m in known if 4 <= len(m) <= 12 and {*m.get_chemical_symbols()} <= {*"HCNO"}][:12]
ase.io.write(shell.folder / "molecules.xyz", known)
shell("dens data convert molecules.xyz --labels none --out data/molecules", lines=3)

# %%
# The recipe is that of QM7. Each epoch draws new noise for every molecule.

shell(
    "fairchem --config configs/qm7/eqv2_morered.yml --timestamp-id molecules "
    "--dataset.train.src=data/molecules --dataset.val.src=data/molecules --optim.max_epochs=200 "
    "--optim.batch_size=12 --optim.eval_every=200 --optim.scheduler_params.warmup_epochs=10 "
    f"{common}",
    grep="at epoch",
)

# %%
# Relax them, displaced by 0.15 Å in each direction. So few molecules teach a model these molecules
# alone: only the displacements are new.

starts = [m.copy() for m in known[::2]]
for start in starts:
    start.positions += rng.normal(scale=0.15, size=start.positions.shape)
ase.io.write(shell.folder / "start.xyz", starts)
shell(
    "dens relax start.xyz --checkpoint checkpoints/molecules/checkpoint.pt --out relaxed.traj",
)


def rmsd(atoms, relaxed) -> float:
    """Return the RMSD after superposition, Å."""
    moved = atoms.copy()
    minimize_rotation_and_translation(relaxed, moved)
    return float(np.sqrt(((moved.positions - relaxed.positions) ** 2).sum(1).mean()))


results = ase.io.read(shell.folder / "relaxed.traj", ":")
molecules = [
    (rmsd(start, true), rmsd(result, true))
    for start, result, true in zip(starts, results, known[::2], strict=True)
]

# %%
# Slabs
# -----
#
# Oxygen on six metals and two sites, relaxed with EMT. Atoms of the lowest layer are fixed, in
# training and in the relaxation.


def relaxed_slab(metal: str, site: str):
    """Return a slab of nine atoms, relaxed with EMT."""
    slab = fcc111(metal, size=(2, 2, 2), vacuum=6.0, periodic=True)
    add_adsorbate(slab, "O", height=1.3, position=site)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 2))
    slab.calc = EMT()
    BFGS(slab, logfile=None).run(fmax=0.02, steps=100)
    slab.calc = None
    return slab


slabs = [relaxed_slab(m, s) for m in ("Cu", "Ag", "Au", "Ni", "Pd", "Pt") for s in ("fcc", "hcp")]
ase.io.write(shell.folder / "slabs.traj", slabs)
shell("dens data convert slabs.traj --labels none --out data/slabs", lines=3)
shell(
    "fairchem --config configs/oc20/eqv2_morered_demo.yml --timestamp-id slabs "
    "--dataset.train.src=data/slabs --dataset.val.src=data/slabs --optim.max_epochs=100 "
    "--optim.batch_size=12 --optim.eval_every=100 --optim.scheduler_params.warmup_epochs=10 "
    f"--optim.morered.pair_share=0 --dataset.relax.src=data/slabs {common}",
    grep="at epoch",
)

# %%
# In Python a relaxer has the surface of an ASE optimizer. Again, only the displacements are new.

relaxer = dens.load_relaxer(shell.folder / "checkpoints/slabs/checkpoint.pt", cpu=True)
moved = []
for true in slabs[::3]:
    slab = true.copy()
    slab.rattle(0.15, rng=rng)  # fixed atoms stay
    before = np.abs(slab.positions - true.positions).max()
    optimizer = relaxer(slab, logfile=None)
    optimizer.run(steps=60)
    after = np.abs(slab.positions - true.positions).max()
    moved.append((before, after))
    print(f"{slab.get_chemical_formula():8} largest displacement {before:.2f} -> {after:.2f} Å")

# %%
# Before and after
# ----------------

# sphinx_gallery_thumbnail_number = 1
figure, panels = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
titles = ("molecules: RMSD, Å", "slabs: largest displacement, Å")
for axes, pairs, title in zip(panels, (molecules, moved), titles, strict=True):
    for pair in pairs:
        axes.plot([0, 1], pair, "o-")
    axes.set_xticks([0, 1], ["displaced", "relaxed"])
    axes.set(title=title, ylim=(0, None), xlim=(-0.3, 1.3))

# %%
# "Converged" means that no more noise is found, not that forces are small: check with forces what
# matters. What well-trained models reach is on the page on relaxation by denoising; a DeNS model
# relaxes too, with the same command.

shell.close()

"""
A first training, and its report
================================

Train a small EquiformerV2 twice on a few structures, without and with DeNS, and compare the two
runs. The commands are those of the demo; only the data set is smaller.
"""

# sphinx_gallery_thumbnail_number = 1
from shell import Shell

from dens.data.demo import make_demo_data

shell = Shell()  # a folder of its own, in which the commands run

# %%
# Data
# ----
#
# ``dens data demo data/demo`` makes 2,400 structures in a minute: adsorbates on metal slabs,
# labelled with ASE's EMT potential. Here are 80 of the same kind.

print(make_demo_data(shell.folder / "data/demo", train_frames=80, val_frames=20).table())

# %%
# Train
# -----
#
# The recipe ``eqv2_demo`` is the baseline, ``eqv2_dens_demo`` adds DeNS. An option
# ``--section.key=value`` changes the config. A run with ``--timestamp-id`` has a name, and goes on
# where it was if the same command is given again. The last two options shrink the model.

common = (
    "--seed 0 --logger=tensorboard --optim.num_workers=0 --optim.max_epochs=3 "
    "--optim.eval_every=10 --optim.scheduler_params.warmup_epochs=0.3 "
    "--model.backbone.num_layers=1 --model.backbone.sphere_channels=16"
)
shell(
    f"fairchem --config configs/oc20/eqv2_demo.yml --timestamp-id baseline {common}",
    grep="at epoch",
)
shell(
    f"fairchem --config configs/oc20/eqv2_dens_demo.yml --timestamp-id dens {common} "
    "--optim.watch.denoising_structures=8"
)

# %%
# The rows "noise MAE" are the *denoising validation*: structures of the validation set are
# corrupted at the noise level of training and denoised.
#
# Each run keeps everything that it logs as lines of JSON:

last = [
    line
    for line in shell.read("logs/tensorboard/dens/metrics.jsonl")
    if line["split"] == "val" and "forces_mae" in line
][-1]
print({name: last[name] for name in ("step", "energy_mae", "forces_mae")})

# %%
# Report
# ------

shell("dens report baseline dens --out report.html", lines=3)

# %%
# ``report.html`` has zoomable curves and needs no network; the PNG beside it shows the same at a
# glance.

shell.show("report_files/overview.png", dpi=150)

# %%
# What to look at, in this order:
#
# - **Validation error of the forces**: the only curve that says whether DeNS helps. In short runs
#   it does not (``docs/results.md``).
# - **Noise error**, with and without the forces: a gap shows that the model reads the forces.
# - **Shares of the gradient**: a noise term that takes nearly all of it has too large a
#   ``denoising_coefficient``.

shell.close()

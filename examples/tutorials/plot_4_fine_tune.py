"""
Fine-tune a trained model
=========================

A model that is trained already learns a metal that it has not seen, with DeNS as an auxiliary
task and without.
"""

import matplotlib.pyplot as plt
import yaml
from shell import Shell

from dens.data.demo import make_demo_data

shell = Shell()  # a folder of its own, in which the commands run

# %%
# A trained model
# ---------------
#
# Any EquiformerV2 checkpoint of fairchem-core 1.10 will do, a published one or your own. This one
# is plain EquiformerV2, trained for a moment on eight metals of the demo. ``val_ood`` of the data
# has a metal that training has not: it is what the model is to learn.

for seed, name in enumerate(("data/demo", "data/more")):
    make_demo_data(shell.folder / name, seed, train_frames=60 - 50 * seed, val_frames=24)
common = (
    "--logger=tensorboard --optim.num_workers=0 --seed 0 --model.backbone.num_layers=1 "
    "--model.backbone.sphere_channels=16 --optim.scheduler_params.warmup_epochs=1"
)
shell(
    f"fairchem --config configs/oc20/eqv2_demo.yml --timestamp-id plain {common} "
    "--optim.max_epochs=6",
    grep="at epoch",
)
shell("dens inspect checkpoints/plain/checkpoint.pt", lines=12)

# %%
# Fine-tune
# ---------
#
# The model starts as it was trained: normalisers and every setting of the trained function are the
# checkpoint's, and the log says where they replace those of the config. The noise head starts as a
# scaled copy of the force head, the force encoding with zero effect.

config = {
    "includes": ["configs/oc20/eqv2_dens_demo.yml"],
    "dataset": {"train": {"src": "data/demo/val_ood"}, "val": {"src": "data/more/val_ood"}},
    "optim": {
        "max_epochs": 6,
        "eval_every": 3,
        "lr_initial": 1.0e-3,  # half of that of the plain model
        "ema_decay": 0.8,
        "dens": {"prob": 0.25, "corrupt_ratio": 0.25, "sigma": 0.05, "denoising_coefficient": 5},
        "watch": {"denoising_structures": 0},
    },
}
shell.write("finetune.yml", yaml.safe_dump(config, sort_keys=False))
start = f"fairchem --config finetune.yml --checkpoint checkpoints/plain/checkpoint.pt {common}"
shell(f"{start} --timestamp-id with_dens", grep="zero effect", lines=1)
shell(f"{start} --timestamp-id without --optim.dens.prob=0.0", grep="at epoch")

# %%
# Compare
# -------
#
# The error before fine-tuning is that of the plain model on the new metal.

shell(
    "fairchem --config configs/oc20/eqv2_demo.yml --mode validate --checkpoint "
    f"checkpoints/plain/checkpoint.pt --dataset.val.src=data/more/val_ood {common}",
    grep="at epoch",
)

# sphinx_gallery_thumbnail_number = 1
figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
for run, label in (("with_dens", "with DeNS"), ("without", "without")):
    log = shell.read(f"logs/tensorboard/{run}/metrics.jsonl")
    found = [line for line in log if line["split"] == "val" and "forces_mae" in line]
    steps, errors = zip(*((line["step"], line["forces_mae"]) for line in found), strict=True)
    axes.plot(steps, errors, "o-", label=label)
axes.set(xlabel="step of fine-tuning", ylabel="force MAE on the new metal, eV/Å")
axes.legend()

# %%
# One seed and 18 steps: this shows that it works, not a gain. For that see
# :doc:`plot_3_does_it_help`.
#
# The result, for anyone without ``dens``, is a stock EquiformerV2 checkpoint:

shell("dens export checkpoints/with_dens/best_checkpoint.pt --out tuned.pt")

# %%
# UMA, with fairchem-core 2
# -------------------------
#
# In an environment with fairchem-core 2 (not run here: the checkpoint must be downloaded from its
# owners):
#
# .. code-block:: console
#
#    $ dens inspect uma-s-1p1.pt --dataset oc20
#    $ dens data convert trajectories/ --format aselmdb --out data/own2 --split by-system
#    $ dens check uma_finetune.yaml
#    $ fairchem -c uma_finetune.yaml
#
# with a copy of ``configs/fairchem2/uma_finetune.yaml`` that names the checkpoint, its scales as
# the first command prints them, and your data.

shell.close()

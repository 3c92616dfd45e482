"""
Does DeNS help on my data?
==========================

Whether it does depends on the data, and on how long you train: with few epochs it costs accuracy.
This is how to find out: the same model, the same steps, the same seeds, without and with DeNS,
compared pair by pair on a test set.
"""

import yaml
from shell import Shell

from dens.data.demo import make_demo_data

shell = Shell()  # a folder of its own, with what a clone has
shell.link("experiments")
shell.link("benchmarks")
make_demo_data(shell.folder / "data/mine", train_frames=40, val_frames=10)

# %%
# A study
# -------
#
# ``experiments`` is the tool that has measured every number of the results. In a clone, a study is
# a file in ``experiments/studies``. Its arms are configs; here both are the recipe with DeNS, and
# the baseline has ``prob: 0``, so that model, initial weights and steps are the same. For your
# data, name their folders.
#
# A comparison needs seeds: the difference between two single runs is mostly chance.

study = {
    "title": "My data",
    "seeds": [0, 1, 2],
    "reference": "baseline",
    "overview": ["dens"],
    "settings": {
        "dataset": {"train": {"src": "data/mine/train"}, "val": {"src": "data/mine/val_id"}},
        "model": {"backbone": {"num_layers": 1, "sphere_channels": 16}},
        "optim": {
            "max_epochs": 6,
            "scheduler_params": {"warmup_epochs": 1},
            "ema_decay": 0.9,  # a horizon of ten steps, of thirty
        },
    },
    "variants": {"short": {"structures": 40, "tests": {"other_metal": "data/mine/val_ood"}}},
    "arms": {
        "baseline": {
            "config": "configs/oc20/eqv2_dens_demo.yml",
            "settings": {"optim": {"dens": {"prob": 0}}},
        },
        "dens": {"config": "configs/oc20/eqv2_dens_demo.yml"},
    },
}
shell.write("experiments/studies/mine.yml", yaml.safe_dump(study, sort_keys=False))

# %%
# Train
# -----
#
# Each run is a process of its own. Stopped at any moment, the same command goes on.

shell("python -m experiments.run mine --jobs 2")

# %%
# Report
# ------
#
# The report compares the arms seed by seed. The interval is that of the mean of the paired
# differences, with 95 % confidence (Student's t): **if it contains zero, this study has not shown a
# difference**, whatever the mean is. With three seeds it is wide.

shell("python -m experiments.run mine --report")
print((shell.folder / "docs/results.md").read_text())

# %%
# Every seed is a point, every run a curve:

shell.show("docs/results/mine.png")

# %%
# What to do with the answer
# --------------------------
#
# - **DeNS is worse, and its validation error still falls at the end**: train longer. With DeNS
#   errors level off later; all gains in the results are of runs in which the baseline had long
#   levelled off.
# - **The interval contains zero**: more seeds, or a larger test set.
# - **DeNS is worse after long training**: less noise (``sigma``), or fewer corrupted structures
#   (``prob``). Choose such settings on the validation set, and measure once on the test set.

shell.close()

"""The list of all places where dens changes fairchem-core 2 in memory, as for 1.10."""

from __future__ import annotations

# (file in this folder, owner of the attributes replaced): which attributes, when and why
BENDS = {
    ("launch.py", "_cli"): "get_hydra_config_from_yaml in main: see whether a run is one of ours",
    ("launch.py", "slurm_launch"): "runner_wrapper while main starts one of ours: print for the "
    "user from the first line of a rank on",
    ("train/steps.py", "self.ema_model"): "update_parameters until the end of a skipped step: the "
    "moving average takes complete steps only",
}

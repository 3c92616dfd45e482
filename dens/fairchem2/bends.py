"""The list of all places where dens changes fairchem-core 2 in memory, as for 1.10."""

from __future__ import annotations

# (file in this folder, owner of the attributes replaced): which attributes, when and why
BENDS = {
    ("train/steps.py", "self.ema_model"): "update_parameters until the end of a skipped step: the "
    "moving average takes complete steps only",
}

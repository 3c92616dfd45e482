"""MoreRed on fairchem-core 1.10: heads, trainer, checkpoints as denoisers, the relax command."""

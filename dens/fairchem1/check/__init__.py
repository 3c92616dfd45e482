"""``dens check`` for fairchem-core 1.10: config, data, normalisers, and one real training step."""

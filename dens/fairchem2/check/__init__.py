"""``dens check`` for configs of fairchem-core 2."""

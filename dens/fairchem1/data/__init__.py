"""Data sets of fairchem-core 1.10, read safely."""

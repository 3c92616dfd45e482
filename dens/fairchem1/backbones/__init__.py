"""Backbones of fairchem-core 1.10 with a force encoding and a noise head, one file for each."""

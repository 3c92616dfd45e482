"""Trainer of fairchem-core 1.10 with DeNS."""

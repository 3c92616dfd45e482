"""EquiformerV2 of fairchem-core 1.10 with DeNS, and its fast path."""

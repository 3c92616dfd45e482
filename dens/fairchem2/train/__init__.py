"""Training with DeNS in fairchem-core 2: unit, loss terms, steps, metrics and logs."""

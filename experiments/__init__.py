"""Studies of baseline against DeNS over seeds: ``python -m experiments.run STUDY``."""

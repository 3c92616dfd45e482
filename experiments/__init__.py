"""Studies: baseline against DeNS over seeds, each number made by ``python -m experiments.run``."""

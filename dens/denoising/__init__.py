"""DeNS on tensors: settings, corruption, force encoding, loss and metrics (arXiv:2403.09549)."""

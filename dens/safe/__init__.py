"""Read pickled records and checkpoints without running code from them."""

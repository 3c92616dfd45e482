"""Read pickled records and checkpoints without running code from them: an allow-list of names."""

"""Streams of random numbers: each a function of a key, with nothing to restore on resume."""

from __future__ import annotations

import numpy as np
import torch


def make_generator(*key: int) -> torch.Generator:
    """A CPU generator whose stream is a function of ``key`` alone, integers >= 0.

    Nothing is drawn from the global generators and nothing needs to be restored on resume.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

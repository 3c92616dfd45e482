"""Random streams: numbers that are a function of a key, with nothing to restore on resume."""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The purposes that draw random numbers; those of two purposes are independent.

    The numbers of training's streams decide recorded results and resumed runs: never change them.
    """

    STRUCTURES = 0  # training, noise of a structure: epoch, sample_id; or step, structure_key
    BATCHES = 1  # training, the coin of a batch: step
    MODEL = 2  # training, dropout, drop path and edge frames: data rank, step
    VALIDATION = 3  # denoising validation: number of the structure, or nothing
    EVALUATION = 4  # dens evaluate: number of the batch
    CHECK = 5  # dens check: number of the draw
    RELAXATION = 6  # relaxation by denoising: number of the structure
    STARTS = 7  # noise of what an evaluation relaxes: sigma in 1e-6 Å, number of the structure

    def generator(self, seed: int, *key: int) -> torch.Generator:
        """Make the generator of this stream for a seed and the key that its comment lists.

        >>> numbers = [torch.rand(1, generator=Stream.BATCHES.generator(0, 7)) for _ in range(2)]
        >>> torch.equal(*numbers)
        True
        """
        if self > Stream.MODEL:
            # (3, 0) and (3,) would give the same numbers, as SeedSequence pads with zeros;
            # a training stream has keys of a single length
            key = (len(key), *key)
        return make_generator(seed, self, *key)


def structure_key(atomic_numbers: torch.Tensor, pos: torch.Tensor) -> int:
    """Hash a structure to an integer for a key: equal structures have equal keys, on any rank.

    Args:
        atomic_numbers: (n_atoms,), on the CPU.
        pos: (n_atoms, 3), on the CPU.
    """
    digest = hashlib.blake2b(digest_size=7)
    for value in (atomic_numbers.to(torch.int64), pos):
        digest.update(value.detach().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


def make_generator(*key: int) -> torch.Generator:
    """Make a CPU generator whose numbers depend on ``key`` alone, integers >= 0.

    Trailing zeros of a key do not count; :meth:`Stream.generator` gives each purpose its own keys.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

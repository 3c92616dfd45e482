"""Make checkpoints for inference that are fairchem-core 2's own."""

from __future__ import annotations

import torch

from dens.fairchem2.attach import without_added
from dens.files import atomic_file


def make_stock(path: str) -> None:
    """Leave out of a checkpoint for inference what DeNS added, and replace the file in one move.

    The checkpoint is then one of a stock model, and needs no dens to be used.
    """
    # fairchem has just written it
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    for name in ("model_state_dict", "ema_state_dict"):
        state = getattr(checkpoint, name)
        if state is not None:
            setattr(checkpoint, name, without_added(state))
    with atomic_file(path) as file:
        torch.save(checkpoint, file)

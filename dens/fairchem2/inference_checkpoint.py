"""Write checkpoints for inference that are fairchem-core 2's own, without what DeNS added."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from dens.fairchem2.attach import without_added
from dens.files import atomic_file
from dens.metrics import find_metric

BEST = "best_inference_ckpt.pt"  # in the folder of checkpoints


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


def write_inference_checkpoint(unit: Any, path: str) -> None:
    """Write the present weights of a unit as a checkpoint of the stock model, without steps."""
    config = OmegaConf.load(unit.job_config.metadata.config_path)
    # plain containers, as in the checkpoints of steps: fairchem asks for their types
    config = OmegaConf.to_container(config.runner.train_eval_unit)
    checkpoint = MLIPInferenceCheckpoint(
        model_config=unit.get_finetune_model_config() or config["model"],
        model_state_dict=_stock_state(unit.model),
        ema_state_dict=None if unit.ema_model is None else _stock_state(unit.ema_model),
        tasks_config=config["tasks"],
    )
    with atomic_file(path) as file:
        torch.save(checkpoint, file)


def _stock_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of the stock part of a model, on the CPU."""
    state = without_added(get_model_state_dict(model))
    return {name: value.cpu() for name, value in state.items()}


class BestCheckpoint:
    """Keeper of the weights that were best in validation.

    Args:
        metric: which decides, as the log names it.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.sign = -1 if find_metric(metric).better == "higher" else 1
        self.value: float | None = None

    def update(self, unit: Any, validated: Mapping[str, Any]) -> None:
        """Keep the unit's weights if they are better than before; for the master.

        Args:
            validated: the metrics of this validation.
        """
        value = float(validated.get(self.metric, math.nan))
        if not math.isfinite(value):
            logging.warning(f"{self.metric} is {value}: no weights are kept as the best")
            return
        if self.value is not None and self.sign * value >= self.sign * self.value:
            return
        self.value = value
        path = os.path.join(unit.job_config.metadata.checkpoint_dir, BEST)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_inference_checkpoint(unit, path)
        logging.info(f"best so far: {self.metric} {value:.4f}, kept in {path}")

"""Trainer that trains nothing and records how its rank was started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fairchem.core.common import distutils

from dens.settings import ConfigError


class RecordingTrainer:
    """Writes ``rank<i>.json`` into the run's folder; then the rank ``optim.refuse_on`` fails."""

    logger = None

    def __init__(self, **settings) -> None:
        self.settings = settings
        self.timestamp_id = settings["timestamp_id"]
        self.config = {"cmd": {"checkpoint_dir": "checkpoints"}}

    def train(self, disable_eval_tqdm: bool = False) -> None:
        rank = distutils.get_rank()
        record = {
            "world_size": distutils.all_reduce(1),
            "dens_before_fairchem": self._imported_first(),
            "timestamp_id": self.timestamp_id,
            "cpu": self.settings["cpu"],
        }
        folder = Path(self.settings["run_dir"], self.timestamp_id)
        folder.mkdir(exist_ok=True)
        (folder / f"rank{rank}.json").write_text(json.dumps(record))
        distutils.synchronize()
        if self.settings["optimizer"].get("refuse_on") == rank:
            raise ConfigError(f"optim.refuse_on must not be set, got {rank}")

    def save(self, **_) -> None:
        """Save nothing."""

    @staticmethod
    def _imported_first() -> bool:
        order = list(sys.modules)  # in the order in which their imports ended
        return order.index("dens.fairchem1.compat") < order.index("fairchem.core")

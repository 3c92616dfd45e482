"""What a run shows of itself beyond its losses: speed, gradients, denoising validation, figures."""

from __future__ import annotations

from dens.fairchem1.watch.settings import WatchSettings, parse_watch
from dens.fairchem1.watch.trainer import Watched
from dens.fairchem1.watch.training import Watch

__all__ = ["Watch", "WatchSettings", "Watched", "parse_watch"]

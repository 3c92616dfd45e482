"""Monitor training: speed, gradient shares, denoising validation, figures."""

from __future__ import annotations

from dens.runs.monitor.settings import MonitorSettings, parse_monitor
from dens.runs.monitor.training import TrainingMonitor

__all__ = ["MonitorSettings", "TrainingMonitor", "parse_monitor"]

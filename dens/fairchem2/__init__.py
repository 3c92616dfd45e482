"""Adapter to fairchem-core 2: DeNS for eSEN and UMA."""

from __future__ import annotations

from dens.hosts import require_major

require_major(2, "dens.fairchem2", "dens.DeNSTrainer")

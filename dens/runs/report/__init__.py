"""A run, or several side by side, as one HTML file that needs no network, and as PNGs."""

from __future__ import annotations

from dens.runs.report.write import write_report

__all__ = ["write_report"]

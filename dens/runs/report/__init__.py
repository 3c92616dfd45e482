"""Write a report of one run or several side by side: an HTML file without network, and PNGs."""

from __future__ import annotations

from dens.runs.report.write import write_report

__all__ = ["write_report"]

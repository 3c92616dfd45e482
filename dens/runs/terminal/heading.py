"""The header of a run: what is trained, on which data and device, and where its files are."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

import torch
from torch import nn

import dens
from dens.runs.terminal.output import RunOutput


def format_header(rows: Mapping[str, str], output: RunOutput | None) -> str:
    """Format a title with the versions, a line for each row, and the file of the host's lines.

    Args:
        rows: facts by their names; empty ones are left out.
        output: the output that writes the host's lines; None: they are printed.
    """
    host = f"fairchem-core {metadata.version('fairchem-core')}"
    title = f"dens {dens.__version__}, {host}, torch {torch.__version__}"
    if output is not None:
        where = output.path or "nowhere: --debug leaves no files"
        rows = {**rows, "log": f"{where} (all lines; --verbose prints them)"}
    width = max(map(len, rows))
    return "\n".join([title, *(f"{k:<{width}}  {v}" for k, v in rows.items() if v)])


def describe_model(model: nn.Module, heads: list[str]) -> str:
    """Describe a model by the class of its backbone, its heads and number of parameters."""
    name = type(getattr(model, "backbone", model)).__name__
    count = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    parts = [f"{count:,} parameters" + f", {frozen:,} of them frozen" * bool(frozen)]
    if heads:
        parts.insert(0, f"heads {', '.join(heads)}")
    return "; ".join([name, *parts])


def describe_device(device: torch.device | str, ranks: int) -> str:
    """Describe the device of this rank, and the number of ranks."""
    device = torch.device(device)
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    missing = "" if torch.cuda.is_available() else "There is no CUDA device: "
    threads = f", {count_of(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    return f"{missing}{name}, {count_of(ranks, 'rank')}{threads} on {platform.node()}"


def count_of(n: int, noun: str) -> str:
    """Format a number with its noun, in the plural if needed."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

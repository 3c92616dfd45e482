"""Inspect a checkpoint: sizes, heads, settings and training state, without running its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from torch import Tensor

from dens.fairchem1.backbones.families import family_of_weights
from dens.fairchem1.checkpoints.layouts import ENCODING, Checkpoint, read
from dens.fairchem1.checkpoints.state import trained_elements


def inspect_checkpoint(path: str | Path, dataset: str | None = None) -> str:
    """Describe a checkpoint in a table.

    Args:
        dataset: refused: only checkpoints of fairchem-core 2 hold scales by data set.

    Raises:
        ValueError: it cannot be read, or its layout or its version of dens is unknown.
    """
    if dataset is not None:
        raise ValueError(f"--dataset {dataset} is for checkpoints of fairchem-core 2, got {path}")
    rows = _rows(read(path, raw=True))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    content = checkpoint.content
    config = content.get("config") or {}
    backbone = (checkpoint.model or {}).get("backbone", {})
    cutoff = backbone.get("max_radius", backbone.get("cutoff"))
    optim = config.get("optim") or {}
    dens = optim.get("dens") or optim.get("denoising_pos_params") or {}
    average = content.get("ema")
    count = sum(w.numel() for name, w in checkpoint.weights.items() if "mapping" not in name)
    rows = [("layout", checkpoint.layout), ("numbers in weights and tables", f"{count:,}")]
    sizes = family_of_weights(checkpoint.weights).describe(checkpoint.weights)
    rows += [(key, str(value)) for key, value in sizes.items()]
    rows += [
        ("cutoff", f"{cutoff} Å" if cutoff is not None else "not given"),
        ("max_neighbors", str(backbone.get("max_neighbors", "not given"))),
        ("heads", ", ".join(f"{name} ({role})" for name, role in checkpoint.heads.items())),
        ("force encoding", _encoding(checkpoint.weights)),
        *_methods({"DeNS": dens, "MoreRed": optim.get("morered")}),
        ("epoch, step", f"{content.get('epoch', '-')}, {content.get('step', '-')}"),
        ("best metric", _best(content)),
        ("moving average (ema)", f"yes, decay {average['decay']}" if average else "no"),
        ("optimizer", "yes" if content.get("optimizer") else "no"),
    ]
    for target, state in checkpoint.normalizers.items():
        numbers = ", ".join(f"{key} {float(value):.6g}" for key, value in state.items())
        rows.append((f"normaliser of {target}", numbers))
    for target, state in checkpoint.elementrefs.items():
        used = int((state["element_references"] != 0).sum())
        rows.append((f"element references of {target}", f"{used} elements"))
    if elements := trained_elements(content):
        rows.append(("trained elements", ", ".join(chemical_symbols[z] for z in elements)))
    ours = content.get("dens")
    rows.append(("dens", f"{ours['package']}, version {ours['version']}" if ours else "not used"))
    rows.append(("fairchem", str((config.get("cmd") or {}).get("version", "not given"))))
    return rows


def _methods(settings: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[str, str]]:
    """List the settings of the methods that trained the model; those of DeNS in any case."""
    texts = {
        k: v and ", ".join(f"{key} {value}" for key, value in v.items())
        for k, v in settings.items()
    }
    return [(f"{k} settings", v or "none") for k, v in texts.items() if v or k == "DeNS"]


def _encoding(weights: Mapping[str, Tensor]) -> str:
    if f"{ENCODING}weight" not in weights:
        return "none"
    return "forces and sigma" if f"{ENCODING}sigma_weight" in weights else "forces"


def _best(content: Mapping[str, Any]) -> str:
    name, value = content.get("primary_metric"), content.get("best_val_metric")
    if value is not None:
        return f"{name} {float(value):.6g}"
    metrics = content.get("val_metrics") or {}
    found = [f"{key} {float(m['metric']):.6g}" for key, m in metrics.items() if "metric" in m]
    return ", ".join(found) or "not given"

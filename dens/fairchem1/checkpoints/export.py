"""Export a checkpoint of any layout to fairchem's own model, for machines without dens.

Noise head and force encoding are left out: they have no effect in evaluation. The file holds
tensors, numbers, text and plain containers only, so that every PyTorch reads it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from fairchem.core.common.utils import update_config
from torch import Tensor

from dens.fairchem1.backbones.families import family_of_section
from dens.fairchem1.checkpoints.layouts import ENCODING, Checkpoint, read
from dens.fairchem1.checkpoints.model_sections import STRESS_HEAD, stock_section
from dens.fairchem1.checkpoints.state import EXPORTED_ELEMENTS, trained_elements
from dens.fairchem1.model.stress_head import as_stock
from dens.files import atomic_file

_LIN_REF = "backbone.energy_lin_ref"


def export_checkpoint(path: Path, out: Path, *, raw: bool = False, bare: bool = False) -> str:
    """Write a checkpoint of fairchem's own model; return a line that describes it.

    Args:
        path: a checkpoint of any layout.
        out: the file to write; missing folders are made.
        raw: export the weights as trained; by default their moving average, where there is one.
        bare: write the weights alone, in the safetensors format.

    Raises:
        ValueError: ``path`` cannot be exported, ``out`` is ``path`` or cannot be written, or
            safetensors is missing.
    """
    if out.exists() and path.exists() and out.samefile(path):
        raise ValueError(f"--out must be another file than the checkpoint, got {out}")
    if out.is_dir():
        raise ValueError(f"--out must be a file, got the folder {out}")
    stock = export(read(path, raw), str(path))
    content = _as_safetensors(stock["state_dict"]) if bare else None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file:
            file.write(content) if bare else torch.save(stock, file)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from error
    title = family_of_section(stock["config"]["model"]).title
    return f"{out}: stock {title}, outputs {', '.join(stock['config']['outputs'])}"


def export(checkpoint: Checkpoint, where: str) -> dict[str, Any]:
    """Make the content of a stock checkpoint that gives equal results on clean structures.

    Args:
        checkpoint: the checkpoint to export.
        where: the name of its file, for errors.

    Raises:
        ValueError: the checkpoint holds no config, or no energies and forces.
    """
    checkpoint.check_potential(where)
    if checkpoint.model is None:
        raise ValueError(f"{where} holds no config, without which it cannot be exported")
    model = stock_section(checkpoint.model)
    left_out = (
        ENCODING,
        *(f"output_heads.{n}." for n, r in checkpoint.heads.items() if r == "noise"),
    )
    weights = {k: v for k, v in checkpoint.weights.items() if not k.startswith(left_out)}
    for name, head in checkpoint.model["heads"].items():
        if head["module"] == STRESS_HEAD:
            weights = as_stock(weights, name)
    if model["backbone"].get("use_pbc") is False:
        logging.warning("Stock fairchem needs torch-cluster to run a model with use_pbc: false.")
    elements, elementrefs = trained_elements(checkpoint.content), dict(checkpoint.elementrefs)
    if model["backbone"].get("use_energy_lin_ref"):
        references = weights[_LIN_REF] * checkpoint.scale("energy")  # in eV
        elementrefs["energy"] = {"element_references": references}
        model["backbone"]["use_energy_lin_ref"] = False
    return plain(
        {
            "state_dict": weights,
            "normalizers": checkpoint.normalizers,
            "elementrefs": elementrefs,
            "config": _config(checkpoint.content["config"], model),
            "val_metrics": checkpoint.content.get("val_metrics"),
            "amp": None,
            **({EXPORTED_ELEMENTS: elements} if elements else {}),
        }
    )


def _config(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the part of a config that fairchem reads to run a checkpoint."""
    config = update_config(copy.deepcopy(dict(config)))
    optim, dataset = config.get("optim") or {}, config.get("dataset") or {}
    if isinstance(dataset, list):
        dataset = dataset[0]
    return {
        "trainer": "equiformerv2_forces",
        "model": model,
        "outputs": config["outputs"],
        "loss_functions": config["loss_functions"],
        "evaluation_metrics": config.get("evaluation_metrics") or {},
        # OCPCalculator deletes src, so it must be there
        "dataset": {"src": "", **{k: dataset[k] for k in ("key_mapping",) if k in dataset}},
        "optim": {k: optim[k] for k in ("batch_size", "eval_batch_size") if k in optim},
        "task": {},
        "amp": bool(config.get("amp")),
    }


def plain(value: Any) -> Any:
    """Convert to builtin containers, numbers and text, and tensors with their own memory."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy number
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _as_safetensors(weights: Mapping[str, Tensor]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise ValueError(
            "--safetensors needs the package safetensors: pip install safetensors"
        ) from None
    return save({name: value.contiguous() for name, value in weights.items()})


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--raw", is_flag=True, help="Take the weights as trained, not their average (EMA).")
@click.option("--safetensors", is_flag=True, help="Write the bare weights in that format.")
def export_command(checkpoint: Path, out: Path, raw: bool, safetensors: bool) -> None:
    """Write CHECKPOINT as a stock model, which runs without dens."""
    click.echo(export_checkpoint(checkpoint, out, raw=raw, bare=safetensors))

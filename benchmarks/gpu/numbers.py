"""Errors of the fast path and of fairchem's modules against float64, on the device."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.arms import SIZES, build, corrupted, make_batch
from benchmarks.gpu import harness
from benchmarks.gpu.harness import PRECISIONS, TINY, Stage, markdown, run_in_context
from dens.fast.backends import using

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers.precision import double, geometry_in_single, in_double

QUANTITIES = ("energy", "forces", "noise", "gradients")


def measure(stage: Stage) -> None:
    """Compare models of the same weights, edges and frames, with and without dropout.

    Dropout is compared in float64 only, and not with CUDA graphs, which draw other numbers.
    """
    batch = corrupted(make_batch(1 if stage.args.tiny else 2), 0.5).to(stage.device)
    found = stage.found.setdefault("numbers", {})
    paths = {"fairchem": ({"fast": False}, "eager")}
    paths |= {f"fast, {backend}": ({}, backend) for backend in stage.args.backends}
    graphs = {"CUDA graphs": ({"cuda_graphs": True}, stage.args.backends[-1])} if stage.cuda else {}
    for dropout in (0.0, 0.1):
        truth = frames = None
        for name, (settings, backend) in (paths | ({} if dropout else graphs)).items():
            with stage.part(f"numbers, float64, {name}, dropout {dropout}"), using(backend):
                with double():
                    model = geometry_in_single(_model(stage, settings, torch.float64, dropout))
                    # those of fairchem for all: on a GPU ours are equal up to float32's rounding
                    frames = frames or model.backbone._init_edge_rot_mat
                    model.backbone._init_edge_rot_mat = frames
                    result = outcome(model, in_double(batch))
                truth = truth or (result, model.state_dict())
                if name != "fairchem":
                    found[f"float64, {name}, dropout {dropout}"] = errors(result, truth[0])
        if dropout or truth is None:
            continue
        result, weights = truth
        for precision in PRECISIONS if stage.cuda else ("fp32", "bf16"):
            for name, (settings, backend) in (paths | graphs).items():
                part = f"{precision}, {name}"
                with stage.part(f"numbers, {part}"), using(backend):
                    model = _model(stage, settings, torch.float32, dropout)
                    model.load_state_dict(weights)
                    with harness.precision(precision) as context:
                        run_in_context(model, context, stage.device)
                        found[part] = errors(outcome(model, batch), result)


def _model(stage: Stage, settings: dict, dtype: torch.dtype, dropout: float):
    size = {**SIZES["M"], "num_layers": 2, **(TINY if stage.args.tiny else {})}
    rates = {"alpha_drop": dropout, "drop_path_rate": dropout}
    return build("ours DeNS", size, **settings, **rates).to(dtype).to(stage.device)


def outcome(model, batch) -> dict[str, Tensor]:
    """Return the outputs that enter the loss, and all gradients of one weighted sum of them."""
    model.train()
    torch.manual_seed(1)
    out = dict(model(batch.clone()))
    mask = batch.noise_mask
    out["forces"], out["noise"] = out["forces"][~mask], out["noise"][mask]
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
        for name, value in sorted(out.items())
    }
    sum((value * weights[name]).sum() for name, value in out.items()).backward()
    gradients = [
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten().double()
        for p in model.parameters()
    ]
    found = {name: value.detach().double() for name, value in out.items()}
    return {**found, "gradients": torch.cat(gradients)}


def errors(result: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative error of each quantity, root mean square."""
    return {k: ((result[k] - truth[k]).norm() / truth[k].norm()).item() for k in QUANTITIES}


def table(found: dict) -> list[str]:
    """Format the errors."""
    rows = [
        [name, *(f"{of[quantity]:.1e}" for quantity in QUANTITIES)]
        for name, of in found.get("numbers", {}).items()
    ]
    return markdown(["error against fairchem's modules in float64", *QUANTITIES], rows)

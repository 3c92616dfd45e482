"""Single operations of the fast path: errors against float64, times, memory and floors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import floors
from benchmarks.gpu.candidates import OPERATIONS, Operation, make_operations
from benchmarks.gpu.harness import (
    Stage,
    markdown,
    measure_ceilings,
    median_ms,
    peak_MiB,
    precision,
)

CHECKED, CHECKED_CPU = 256, 5  # edges (or atoms) whose results are compared; times are those of all


def measure(stage: Stage) -> None:
    """Measure all candidates of all operations, at each size."""
    with stage.part("ceilings"):
        stage.found["ceilings"] = measure_ceilings(stage)
    limits = stage.found.get("ceilings", floors.CEILINGS)
    stage.found["rows"] = []
    for size, n in stage.args.batches:
        if size not in stage.args.sizes:
            continue
        shapes = floors.shapes(size, n)
        if stage.args.tiny:
            shapes |= {"N": 4, "E": 6}
        floor = floors.operations(shapes)
        for op in make_operations(shapes, stage.device, stage.args.backends):
            if op.name in stage.args.ops:
                measure_operation(stage, f"{size} x {n}", op, floor[OPERATIONS[op.name]], limits)


def measure_operation(stage: Stage, size: str, op: Operation, floor: dict, limits: dict) -> None:
    """Measure the candidates of an operation at each precision, a row for each."""
    for mode in stage.args.precisions:
        for name, run in op.candidates.items():
            label = f"{size}, {op.name}, {name}, {mode}"
            if not stage.reaches(label, 5):
                continue
            with stage.part(label), precision(mode) as context:
                row = {"size": size, "op": op.name, "candidate": name, "precision": mode}
                row["errors"] = check(op, run, mode, context, stage.device)
                row |= measure_time(op, run, mode, context, stage)
                stage.found["rows"].append(row | bounds(floor, mode, limits))


def bounds(floor: dict, mode: str, limits: dict) -> dict[str, float]:
    """Return the longer of arithmetic and bytes, ms: forward, and forward and backward."""
    width = 0.5 if mode == "bf16" else 1.0
    forward, backward = (
        max(floor[f"flop{way}"] / limits[mode], width * floor[f"floor{way}"] / limits["copy"])
        for way in ("", "_back")
    )
    return {"floor_forward_ms": forward, "floor_both_ms": forward + backward}


def prepare(op: Operation, n: int, mode: str) -> dict:
    """Make the inputs, in the dtype that a model has them in, with gradients."""
    tensors = op.inputs(n)
    for name in op.grads:
        tensor = tensors[name].detach()
        half = mode == "bf16" and name in op.grads[: op.half]
        tensors[name] = (tensor.bfloat16() if half else tensor.clone()).requires_grad_()
    return tensors


def as_list(out: Tensor | tuple | list) -> list[Tensor]:
    """Return an operation's outputs as a list."""
    return list(out) if isinstance(out, tuple | list) else [out]


def check(op: Operation, run: Callable, mode: str, context: Callable, device: str) -> dict:
    """Return the relative errors of outputs and gradients against float64, root mean square."""
    torch.manual_seed(0)
    tensors = prepare(op, CHECKED if device != "cpu" else CHECKED_CPU, mode)
    exact = {
        k: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in tensors.items()
    }
    for name in op.grads:
        exact[name].requires_grad_()
    true = as_list(op.plain(**exact))
    ups = [torch.randn_like(t) for t in true]
    with context(device):
        found = as_list(run(**tensors))
    down = [up.to(f.dtype) for up, f in zip(ups, found, strict=True)]
    grads = torch.autograd.grad(found, [tensors[name] for name in op.grads], down)
    true_grads = torch.autograd.grad(true, [exact[name] for name in op.grads], ups)
    pairs = [(torch.cat([f.flatten() for f in x]) for x in (found, true))]
    names = ["out", *op.grads]
    errors = {}
    for name, (a, b) in zip(names, [*pairs, *zip(grads, true_grads, strict=True)], strict=True):
        errors[name] = ((a.double() - b).norm() / b.norm()).item()
    if bad := [name for name, error in errors.items() if error != error]:
        raise ValueError(f"not a number: {', '.join(bad)}")
    return errors


def measure_time(
    op: Operation, run: Callable, mode: str, context: Callable, stage: Stage
) -> dict[str, float | None]:
    """Time the forward pass, and both passes, in ms; and the peak memory of both, MiB."""
    tensors = prepare(op, op.n, mode)

    def forward() -> list[Tensor]:
        with context(stage.device):
            return as_list(run(**tensors))

    ups = [torch.randn_like(out) for out in forward()]

    def both() -> None:
        torch.autograd.grad(forward(), [tensors[name] for name in op.grads], ups)

    return {
        "forward_ms": median_ms(forward, stage.device, stage.args.seconds),
        "both_ms": median_ms(both, stage.device, stage.args.seconds),
        "MiB": peak_MiB(both, stage.device),
    }


def table(found: dict) -> list[str]:
    """Format times, floors, memory and the largest error of each candidate."""
    head = ["size", "operation", "candidate", "precision", "forward, ms", "floor", "both, ms"]
    rows = []
    for r in found.get("rows", []):
        times = [r[k] for k in ("forward_ms", "floor_forward_ms", "both_ms", "floor_both_ms")]
        used = "" if r["MiB"] is None else f"{r['MiB']:.0f}"
        rows.append([r["size"], r["op"], r["candidate"], r["precision"]])
        rows[-1] += [*(f"{t:.3g}" for t in times), used, f"{max(r['errors'].values()):.1e}"]
    return markdown([*head, "floor", "memory, MiB", "largest error"], rows)

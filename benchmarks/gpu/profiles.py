"""Kernels of a training step: by name, by kind of operation, by part of the model."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import floors, regions
from benchmarks.gpu import steps
from benchmarks.gpu.harness import Stage, markdown, measure_ceilings, milliseconds, precision
from dens.patching import replaced

_CUDA, _CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
LABELS = ("operation: ", "part: ")
KEPT = 60  # kernels in the JSON file


@contextmanager
def labelled_operations() -> Iterator[None]:
    """Label the kinds of operations of :mod:`benchmarks.regions` in a ``with`` block."""
    with ExitStack() as stack:
        for kind, places in regions.KINDS.items():
            for owner, name in places:
                stack.enter_context(replaced(owner, **{name: getattr(owner, name)}))
                regions.label(owner, name, f"operation: {kind}")
        yield


def measure(stage: Stage) -> None:
    """Profile one step of each arm, for the first size."""
    size, n = next(pair for pair in stage.args.batches if pair[0] in stage.args.sizes)
    stage.found |= {"size": size, "structures": n, "profiles": {}}
    with stage.part("ceilings"):
        stage.found["ceilings"] = measure_ceilings(stage)
    arms = steps.choose_arms(stage, ["fairchem DeNS", "ours DeNS"])
    for name in stage.args.precisions:
        for label, (arm, backend) in arms.items():
            if not stage.reaches(f"{label}, {name}", 15):
                continue
            with stage.part(f"{label}, {name}"), precision(name) as context, labelled_operations():
                step = steps.new_step(arm, backend, size, n, stage, context)
                found = profile_step(stage, step)
                stage.found["profiles"][f"{label}, {name}"] = found
                del step
            stage.release()


def profile_step(stage: Stage, step: steps.Step) -> dict:
    """Return the time of a step alone, and its kernels."""
    regions.label_parts(step)
    steps.warm_up(step, stage)
    alone = statistics.median(milliseconds(step.run, stage.device)[0] for _ in range(3))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * stage.cuda
    with profile(activities=activities) as recorded:
        step.run()
        stage.synchronize()
    return {"ms": alone, **read_events(recorded.events(), stage.device)}


def read_events(events: list, device: str) -> dict:
    """Sum up kernels (on a CPU, innermost operations) and shares by label."""
    kernels: dict[str, list[float]] = {}
    for event in events:
        on_gpu = device != "cpu"
        counts = event.device_type == _CUDA if on_gpu else not event.cpu_children
        # labels, ours and the optimizer's, are drawn on the GPU's line too
        annotation = getattr(event, "is_user_annotation", False)
        if counts and not annotation and not event.name.startswith(LABELS):
            passed = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            kernels.setdefault(event.name, []).append(passed / 1e3)
    rows = [{"name": name, "ms": sum(v), "calls": len(v)} for name, v in kernels.items()]
    rows.sort(key=lambda row: -row["ms"])
    share = partial(regions.shares, [e for e in events if e.device_type == _CPU], device=device)
    return {
        "busy_ms": sum(row["ms"] for row in rows),
        "launches": sum(row["calls"] for row in rows),
        "kernels": rows[:KEPT],
        "kernels_not_kept": len(rows[KEPT:]),
        "operation": share(prefix="operation: "),
        "part": share(prefix="part: "),
    }


def table(found: dict) -> list[str]:
    """Format the largest kernels, shares, and the floors of a step."""
    if "size" not in found:
        return []
    size, n, lines = found["size"], found["structures"], []
    for label, p in found["profiles"].items():
        lines += [f"{size} x {n}, {label}: {p['ms']:.4g} ms a step, busy {p['busy_ms']:.4g} ms, "]
        lines[-1] += f"{p['launches']} kernels\n"
        rows = [
            [k["name"][:90], f"{k['ms']:.3g}", f"{k['ms'] / p['busy_ms']:.1%}", k["calls"]]
            for k in p["kernels"][: found["arguments"]["top"]]
        ]
        lines += [*markdown(["kernel", "ms", "share", "calls"], rows), ""]
        for by in ("operation", "part"):
            lines.append(f"{by}: " + ", ".join(f"{k} {v:.1%}" for k, v in p[by].items()) + "\n")
    return [*lines, *floors.table(size, n, found.get("ceilings", floors.CEILINGS))]

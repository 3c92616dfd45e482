"""Profile a training step by part of the model and by kind of operation.

    OMP_NUM_THREADS=1 python -m benchmarks.regions --size S

Shares of a step by torch.profiler, forward and backward: an autograd node counts where its forward
ran. Recording costs time itself, most where operations are small: the shares tell where to look,
and whole steps are measured by :mod:`benchmarks.step`.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
from collections import Counter
from functools import wraps
from pathlib import Path

import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.equiformer_v2 import activation, radial_function, so2_ops, so3
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.arms import ARMS, SIZES, Step
from benchmarks.measure import commit, hardware
from dens.fairchem1.model.fast import layers
from dens.fast import attention

# kind of operation: where it is called, as (owner, name), in fairchem and in the fast path
KINDS = {
    "S2 activation": [
        (activation.SeparableS2Activation, "forward"),
        (attention, "separable_s2"),
    ],
    "SO(2) convolution": [
        (so2_ops.SO2_Convolution, "forward"),
        (attention, "complex_linear"),
    ],
    "radial function": [
        (radial_function.RadialFunction, "forward"),
        (attention, "radial_function"),
        (layers, "radial_function"),
    ],
    "rotation, gather, sum": [
        (so3.SO3_Embedding, "_expand_edge"),
        (so3.SO3_Embedding, "_rotate"),
        (so3.SO3_Embedding, "_rotate_inv"),
        (so3.SO3_Embedding, "_reduce_edge"),
        (attention, "rotate_in"),
        (attention, "rotate_out"),
    ],
    "reordering": [
        (so3.SO3_Embedding, "_m_primary"),
        (so3.SO3_Embedding, "_l_primary"),
    ],
}
_BACKWARD = "autograd::engine::evaluate_function"


def label(owner, name: str, text: str) -> None:
    """Record each call of ``owner.name`` under ``text``."""
    function = getattr(owner, name)

    @wraps(function)
    def recorded(*args, **kwargs):
        with record_function(text):
            return function(*args, **kwargs)

    setattr(owner, name, recorded)


def label_parts(step: Step) -> None:
    """Label the parts of a step's model, and its optimizer."""
    backbone, optimizer = step.model.backbone, step.optimizer
    label(backbone, "generate_graph", "part: graph")
    label(backbone.edge_degree_embedding, "forward", "part: edge-degree embedding")
    for block in backbone.blocks:
        label(block.ga, "forward", "part: attention")
        label(block.ffn, "forward", "part: feed-forward network")
    for name, head in step.model.output_heads.items():
        label(head, "forward", f"part: {name} head")
    label(optimizer, "step", "part: optimizer")


def shares(events: list, prefix: str, device: str) -> dict[str, float]:
    """Return the share of each label that begins with ``prefix`` in the time of all events."""
    by_node: dict[int, str] = {}  # the label under which an autograd node was made
    for event in sorted(events, key=lambda e: e.time_range.start):
        found, backward = _label(event, prefix)
        if not backward and event.sequence_nr >= 0:
            by_node[event.sequence_nr] = found
    time = Counter()
    for event in events:
        found, backward = _label(event, prefix)
        if backward:
            found = by_node.get(backward.sequence_nr, "rest")
        attribute = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
        time[found] += getattr(event, attribute)
    total = sum(time.values())
    return {name: value / total for name, value in time.most_common()}


def _label(event, prefix: str) -> tuple[str, object | None]:
    """Return the innermost label around an event, or the node whose backward it belongs to."""
    while event is not None:
        if event.name.startswith(prefix):
            return event.name.removeprefix(prefix), None
        if event.name.startswith(_BACKWARD):
            return "rest", event
        event = event.cpu_parent
    return "rest", None


def measure(arm: str, size: dict, structures: int, rounds: int, device: str) -> dict:
    """Measure shares by part and by kind of operation, for one arm."""
    step = Step(arm, size, structures, device)
    label_parts(step)
    step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
    with profile(activities=activities) as recorded:
        for _ in range(rounds):
            step()
    # not the kernels on a GPU themselves: their time is that of the operations that launched them
    events = [e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CPU]
    return {
        "part": shares(events, "part: ", device),
        "operation": shares(events, "operation: ", device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="M")
    parser.add_argument("--structures", type=int, default=1, help="in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=["fairchem DeNS", "ours DeNS, r = 0.5"]
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    setup_imports()
    if args.device == "cpu":
        torch.set_num_threads(1)
    for kind, places in KINDS.items():
        for owner, name in places:
            label(owner, name, f"operation: {kind}")
    found = {}
    for arm in args.arms:
        found[arm] = measure(arm, SIZES[args.size], args.structures, args.rounds, args.device)
    for by in ("part", "operation"):
        names = dict.fromkeys(name for arm in found.values() for name in arm[by])
        print(f"| {by} | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
        for name in names:
            cells = (f"{100 * arm[by].get(name, 0):.1f} %" for arm in found.values())
            print(f"| {name} | " + " | ".join(cells) + " |")
        print()
    if args.out:
        about = {"hardware": hardware(args.device), "commit": commit(), "torch": torch.__version__}
        args.out.write_text(json.dumps({**about, "shares": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

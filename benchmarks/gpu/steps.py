"""Times and memory of training steps, all arms in one process, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.arms import SIZES, Step
from benchmarks.gpu.harness import (
    TINY,
    Stage,
    markdown,
    milliseconds,
    peak_MiB,
    precision,
    run_in_context,
    with_backend,
)
from benchmarks.measure import summary

# name: (arm of benchmarks.arms, settings)
ARMS = {
    "fairchem": ("fairchem", {}),
    "fairchem DeNS": ("fairchem DeNS", {}),
    "ours, fast: false": ("ours", {"fast": False}),
    "ours DeNS, fast: false": ("ours DeNS, r = 0.5", {"fast": False}),
    "ours": ("ours", {}),
    "ours DeNS": ("ours DeNS, r = 0.5", {}),
    "ours, CUDA graphs": ("ours", {"cuda_graphs": True}),
    "ours DeNS, CUDA graphs": ("ours DeNS, r = 0.5", {"cuda_graphs": True}),
}
FAST = [name for name in ARMS if name.startswith("ours") and "fast: false" not in name]
# a ratio of the table: (name, numerator, denominator)
RATIOS = [
    ("plain: fairchem / ours", "fairchem", "ours"),
    ("DeNS: fairchem / ours", "fairchem DeNS", "ours DeNS"),
    ("DeNS: ours, fast: false / fast", "ours DeNS, fast: false", "ours DeNS"),
    ("plain: fairchem / ours, CUDA graphs", "fairchem", "ours, CUDA graphs"),
    ("DeNS: fairchem / ours, CUDA graphs", "fairchem DeNS", "ours DeNS, CUDA graphs"),
    ("DeNS: ours / CUDA graphs", "ours DeNS", "ours DeNS, CUDA graphs"),
    ("fairchem: DeNS / plain", "fairchem DeNS", "fairchem"),
    ("ours: DeNS / plain", "ours DeNS", "ours"),
    ("ours, CUDA graphs: DeNS / plain", "ours DeNS, CUDA graphs", "ours, CUDA graphs"),
]


def choose_arms(stage: Stage, default: list[str]) -> dict[str, tuple[str, str]]:
    """Return the arms to measure: {label: (name of the arm, backend)}.

    The fast path's are there once for each backend, which their labels name unless it is eager
    alone.
    """
    backends, found = stage.args.backends, {}
    for arm in stage.args.arms or default:
        for backend in backends if arm in FAST else backends[:1]:
            suffix = "" if arm not in FAST or backends == ["eager"] else f", {backend}"
            found[arm + suffix] = (arm, backend)
    return found


def choose_ratios(labels: dict[str, tuple[str, str]], backends: list[str]) -> list[tuple]:
    """Return the ratios among the given arms, as in RATIOS."""

    def of(arm: str, backend: str) -> str | None:
        found = [label for label, (a, b) in labels.items() if a == arm]
        return next((x for x in found if arm not in FAST or labels[x][1] == backend), None)

    found = []
    for backend in backends:
        suffix = "" if backends == ["eager"] else f" ({backend})"
        found += [(n + suffix, of(a, backend), of(b, backend)) for n, a, b in RATIOS]
    for backend in backends[1:]:
        first = backends[0]
        found += [(f"{a}: {first} / {backend}", of(a, first), of(a, backend)) for a in FAST]
    found = {ratio[1:]: ratio for ratio in found if ratio[1] and ratio[2]}  # each once
    return list(found.values())


def new_step(
    arm: str, backend: str, size: str, structures: int, stage: Stage, context: Callable
) -> Callable:
    """Build a training step of an arm, its model's forward pass in ``context``."""
    name, settings = ARMS[arm]
    settings = {**SIZES[size], **(TINY if stage.args.tiny else {}), **settings}
    step = Step(name, settings, structures, stage.device)
    run_in_context(step.model, context, stage.device)
    step.run = with_backend(backend, step)
    return step


def warm_up(step: Step, stage: Stage) -> None:
    """Take steps that do not count: handles, workspaces, compilation, the allocator."""
    for _ in range(1 if stage.args.tiny else 3):
        step.run()
    stage.synchronize()


def measure(stage: Stage) -> None:
    """Time all arms for each size, number of structures and precision, until the budget ends."""
    sizes = [pair for pair in stage.args.batches if pair[0] in stage.args.sizes]
    plan = [(size, n, name) for name in stage.args.precisions for size, n in sizes]
    if stage.args.single:
        plan += [(size, 1, "fp32") for size, _ in sizes]
    stage.found["cases"] = []
    for size, n, name in plan:
        label = f"{size} x {n}, {name}"
        if not stage.reaches(label, 20):
            continue
        with stage.part(label), precision(name) as context:
            case = {"size": size, "structures": n, "precision": name, "arms": {}}
            stage.found["cases"].append(case)
            measure_case(stage, case, context)
        stage.release()


def measure_case(stage: Stage, case: dict, context: Callable) -> None:
    """Measure memory and then time of each arm of a case; an arm that fails is noted."""
    labels = choose_arms(stage, list(ARMS))
    steps: dict[str, Step] = {}
    for label, (arm, backend) in labels.items():
        if not stage.reaches(f"{name_of(case)}, {label}", 10):
            continue
        try:
            step = new_step(arm, backend, case["size"], case["structures"], stage, context)
            warm_up(step, stage)
            step.optimizer.zero_grad()
            used = peak_MiB(step.run, stage.device)
            steps[label], case["arms"][label] = step, {"ms": [], "host_ms": [], "MiB": used}
        except Exception as error:
            case["arms"][label] = {"error": f"{type(error).__name__}: {error}"[:500]}
            stage.fail(f"{name_of(case)}, {label}", error)
        step = None
        if label not in steps:
            stage.release()
    case["rounds"] = take_turns(stage, steps, case["arms"])
    case["ratios"] = {}
    for name, over, under in choose_ratios(labels, stage.args.backends):
        if over in steps and under in steps and case["rounds"]:
            pairs = zip(case["arms"][over]["ms"], case["arms"][under]["ms"], strict=True)
            case["ratios"][name] = summary([a / b for a, b in pairs])


def take_turns(stage: Stage, steps: dict[str, Step], found: dict[str, dict]) -> int:
    """Time each arm once in every round, in a changing order, and return the rounds."""
    rounds, start, names = 0, time.monotonic(), list(steps)
    while names and rounds < stage.args.rounds:
        late = time.monotonic() - start > stage.args.seconds
        if (rounds >= 3 and late) or (rounds and stage.left() < 0):
            break
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            device, host = milliseconds(steps[name].run, stage.device)
            found[name]["ms"].append(device)
            found[name]["host_ms"].append(host)
        rounds += 1
    return rounds


def name_of(case: dict) -> str:
    """Name a case by size, structures and precision."""
    return f"{case['size']} x {case['structures']}, {case['precision']}"


def table(found: dict) -> list[str]:
    """Format times, memory and ratios."""
    rows, ratios = [], []
    for case in found.get("cases", []):
        label = name_of(case)
        for arm, of in case["arms"].items():
            if not of.get("ms"):
                rows.append([label, arm, of.get("error", "")[:80], "", "", ""])
                continue
            ms, host = (statistics.median(of[key]) for key in ("ms", "host_ms"))
            used = "" if of["MiB"] is None else f"{of['MiB']:.0f}"
            rate = 1e3 * case["structures"] / ms
            rows.append([label, arm, f"{ms:.4g}", f"{host:.4g}", f"{rate:.4g}", used])
        for name, r in case.get("ratios", {}).items():
            quartiles = f"{r['low']:.3f} - {r['high']:.3f}"
            ratios.append([label, name, f"{r['median']:.3f}", quartiles, case["rounds"]])
    head = ["case", "arm", "ms / step", "host, ms", "structures/s", "memory, MiB"]
    lines = [*markdown(head, rows), ""]
    return lines + markdown(["case", "ratio", "median", "quartiles", "rounds"], ratios)

"""Measure structures per second: batched, one by one, and of baselines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import in_turns, seconds_of
from benchmarks.relaxation.baselines import BASELINES, run_baseline
from benchmarks.relaxation.molecules import Starts, note
from dens.relax.config import RelaxSettings
from dens.relax.loop import relax_structures
from dens.relax.structures import Denoiser

BATCHED, ALONE = "batched", "one by one"


def measure_speed(
    denoiser: Denoiser,
    settings: RelaxSettings,
    starts: Starts,
    baselines: Sequence[str],
    *,
    rounds: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Relax the same structures in batches and one by one, in turns, and once with baselines.

    Returns:
        The process seconds of each round (wall seconds on a GPU), by arm, and the number of
        structures; the first round, a warm-up, is left out.
    """

    def relax(how: RelaxSettings) -> None:
        relax_structures(starts.starts, denoiser, how, seed, numbers=starts.numbers)

    # a structure that is larger than a batch is one by itself
    ways = {BATCHED: settings, ALONE: settings.model_copy(update={"batch_atoms": 1})}
    arms = {name: partial(seconds_of, partial(relax, how), device) for name, how in ways.items()}
    seconds = {name: found[1:] for name, found in in_turns(arms, rounds + 1).items()}
    for name in baselines:
        seconds[BASELINES[name].title] = [run_baseline(name, starts).seconds]
        note(f"{name}: {len(starts.numbers)} structures")
    return {"n": len(starts.numbers), "start": starts.name, "seconds": seconds}


def format_speed(speed: dict[str, Any]) -> str:
    """Format structures per second of each arm, and how much faster batches are."""
    n, seconds = speed["n"], speed["seconds"]
    batched = np.array(seconds[BATCHED])
    lines = ["| relaxation | structures per second | batched is faster by |", "|---|---|---|"]
    for name, found in seconds.items():
        ratios = np.array(found) / (batched if len(found) == len(batched) else np.median(batched))
        faster = "" if name == BATCHED else f"{np.median(ratios):.2f}"
        lines.append(f"| {name} | {n / np.median(found):.3g} | {faster} |")
    return "\n".join([f"{n} structures, noise {speed['start']} Å.", "", *lines])

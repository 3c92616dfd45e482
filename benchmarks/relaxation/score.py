"""Run models and baselines from all starts, and collect their figures as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.measure import clock
from benchmarks.relaxation.baselines import BASELINES, run_baseline
from benchmarks.relaxation.molecules import GIVEN, Starts, note, same_molecules, share
from dens.relax.config import RelaxSettings
from dens.relax.evaluation import Measured, levels_found, measure, rank_correlation
from dens.relax.loop import relax_structures
from dens.relax.structures import Denoiser

TIMES = (5, 15, 50, 100, 200, 300)  # levels t at which the time head is asked
ALL, SHARED = "all", "shared"  # the structures of a row: all, or those that baselines relax too


def same_at_start(starts: Sequence[Starts], step: int) -> dict[str, Any]:
    """Compute the share of starts that are the same molecule as the true structure.

    Args:
        starts: the starts.
        step: baselines relax structures whose number is a multiple of it.
    """
    found = {}
    for one in starts:
        same = same_molecules(one.true, [start.pos for start in one.starts])
        found[one.name] = {ALL: share(same), SHARED: share([same[i] for i in one.every(step)])}
    return found


def run_model(
    denoiser: Denoiser,
    settings: RelaxSettings,
    starts: Sequence[Starts],
    *,
    step: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Relax all starts with a model, and ask its time head at known levels.

    Args:
        denoiser: the model.
        settings: sampler and its settings.
        starts: the starts.
        step: baselines relax structures whose number is a multiple of it.
        seed: of the samplers' noise, and of that for the time head.
        device: where the model runs, for the clock.
    """
    rows, measured = {}, {}
    for one in starts:
        begin = clock(device)
        relaxed = relax_structures(one.starts, denoiser, settings, seed, numbers=one.numbers)
        seconds = clock(device) - begin
        measured[one.name] = measure(one.true, one.starts, relaxed)
        rows[one.name] = _rows(one, measured[one.name], [r.pos for r in relaxed], step)
        rows[one.name][ALL]["ms"] = 1000 * seconds / len(relaxed)
        note(f"start {one.name}: {len(relaxed)} structures in {seconds:.0f} s")
    noisy = [value for name, value in measured.items() if name != GIVEN]
    correlation = {"all starts": rank_correlation(list(measured.values()))}
    if noisy and len(noisy) < len(measured):
        correlation["noise"] = rank_correlation(noisy)
    return {
        "settings": settings.model_dump(),
        "starts": rows,
        "rank_correlation": correlation,
        "time": _times(denoiser, starts[0], seed),
    }


def _times(denoiser: Denoiser, starts: Starts, seed: int) -> dict[str, dict[str, float]]:
    found = {}
    for level in TIMES:
        if level < len(denoiser.levels):
            levels = levels_found(starts.true, denoiser, level, seed, starts.numbers)
            found[str(level)] = {
                "mean": levels.mean().item(),
                "sd": levels.std(correction=0).item(),
            }
    return found


def run_baselines(names: Sequence[str], starts: Sequence[Starts], step: int) -> list[dict]:
    """Relax the starts of every ``step``-th structure with baselines; the figures of each."""
    found = []
    for name in names:
        rows = {}
        for one in starts:
            chosen = one.select(one.every(step))
            if not chosen.numbers:
                raise ValueError(
                    f"start {one.name}: no structure has a number that is a multiple of "
                    f"{step} (--baseline-every)"
                )
            run = run_baseline(name, chosen)
            rows[one.name] = _rows(chosen, run.measured, run.positions, step, own=(SHARED,))
            rows[one.name][SHARED]["ms"] = 1000 * run.seconds / len(run.positions)
            note(f"{name}, start {one.name}: {len(run.positions)} in {run.seconds:.0f} s")
        found.append({"name": BASELINES[name].title, "run": name, "starts": rows})
    return found


def _rows(
    starts: Starts,
    measured: Measured,
    positions: Sequence[Tensor],
    step: int,
    own: Sequence[str] = (ALL, SHARED),
) -> dict[str, dict[str, float]]:
    same = same_molecules(starts.true, positions)
    chosen = {ALL: list(range(len(same))), SHARED: starts.every(step)}
    return {
        name: {
            **measured.select(chosen[name]).summary(),
            "same_molecule": share([same[i] for i in chosen[name]]),
        }
        for name in own
        if chosen[name]
    }

"""Relax slabs by denoising, and by BFGS on forces, to the minima that EMT finds.

    OMP_NUM_THREADS=1 python -m benchmarks.relax_slabs --data data/demo_relaxed/val_id \
      --model demo=DENS_CHECKPOINT --model morered=MORERED_CHECKPOINT --out slabs.json

Starts are the minima with noise on their free atoms, a function of its size and of the sid alone,
and the structures that EMT began from. Measured at the end: root mean square distance of the free
atoms from the minimum, and the energy above it in EMT. Calls are those of the network: a DeNS model
that is told sigma is asked twice in each call of the sampler. Times are process times.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms

from benchmarks.bfgs import End, ModelForces, forces_in_emt, labels_in_emt, optimise
from benchmarks.measure import clock, commit, hardware
from dens.constraints import fixed_atoms
from dens.data.store.records import data_to_atoms
from dens.fairchem1.data.datasets import open_dataset
from dens.fairchem1.morered.denoisers import NetworkDenoiser, ZeroForceDenoiser, load_denoiser
from dens.relax.atoms.relaxer import Relaxer
from dens.relax.config import RelaxSettings
from dens.relax.quality import distances

FIRST = "first frames"


class Target(NamedTuple):
    """A structure at its minimum in EMT."""

    atoms: Atoms
    energy: float  # eV
    start: np.ndarray  # (n_atoms, 3) | Å, from where EMT found it
    sid: int

    def at(self, pos: np.ndarray) -> Atoms:
        """Copy it to other positions."""
        moved = self.atoms.copy()
        moved.set_positions(pos, apply_constraint=False)
        return moved


@dataclass(frozen=True)
class Way:
    """A way to relax structures."""

    name: str
    run: Callable[[list[Atoms]], list[End]]


def read_targets(path: Path, count: int | None) -> list[Target]:
    """Read the minima of a folder that ``dens data demo --relaxed`` made."""
    targets = []
    for data in list(open_dataset(path))[:count]:
        atoms = data_to_atoms(data)
        targets.append(
            Target(atoms, labels_in_emt(atoms)[0], data.pos_start.double().numpy(), data.sid)
        )
    return targets


def starts_of(target: Target, noises: Sequence[float]) -> Iterator[tuple[str, Atoms]]:
    """Make the starts of a structure, by name."""
    free = ~fixed_atoms(target.atoms)
    for noise in noises:
        rng = np.random.default_rng([round(noise * 10_000), target.sid])
        moved = np.where(free[:, None], noise * rng.normal(size=(len(free), 3)), 0)
        yield f"noise {noise:g} Å", target.at(target.atoms.positions + moved)
    yield FIRST, target.at(target.start)


def denoise(
    denoiser: NetworkDenoiser, asked: int, settings: dict, starts: list[Atoms]
) -> list[End]:
    """Relax in one batch; ``asked`` is how often a call of the denoiser asks the network."""
    begin = clock("cpu")
    results = Relaxer(denoiser, RelaxSettings(**settings)).relax_many(starts)
    seconds = (clock("cpu") - begin) / len(starts)
    return [
        End(r.atoms.positions, asked * r.relaxed.calls, r.relaxed.converged, seconds)
        for r in results
    ]


def polish(first: Way, second: Way, starts: list[Atoms]) -> list[End]:
    """Relax in two stages."""
    before = first.run(starts)
    moved = [start.copy() for start in starts]
    for atoms, end in zip(moved, before, strict=True):
        atoms.set_positions(end.pos, apply_constraint=False)
    return [
        End(b.pos, a.calls + b.calls, b.converged, a.seconds + b.seconds)
        for a, b in zip(before, second.run(moved), strict=True)
    ]


def stay(starts: list[Atoms]) -> list[End]:
    """Leave structures where they are."""
    return [End(atoms.positions, 0, True, 0.0) for atoms in starts]


def ways_of(name: str, path: Path, bfgs_too: bool) -> Iterator[Way]:
    """List the ways to relax with a model, by default to the stop that its denoiser asks for."""
    denoiser = load_denoiser(path, cpu=True)
    if not isinstance(denoiser, ZeroForceDenoiser):
        for calls, limit in (("1 call", 1), ("3 calls", 3), ("to its stop", 60)):
            yield Way(f"{name}, {calls}", partial(denoise, denoiser, 1, {"max_calls": limit}))
        return
    asked = 1 + bool(denoiser.network.model.backbone.sigma_encoding)
    yield Way(
        f"{name}, 1 call", partial(denoise, denoiser, asked, {"max_calls": 1, "damping": 0.0})
    )
    for damping in (0.0, 0.5):
        for calls, limit in (("3 calls", 3), ("to its stop", 60)):
            settings = {"max_calls": limit, "damping": damping}
            run = partial(denoise, denoiser, asked, settings)
            yield Way(f"{name}, {calls}, damping {damping:g}", run)
    if not bfgs_too:
        return
    bfgs = Way(f"{name}, BFGS on its forces", partial(optimise, ModelForces(path)))
    yield bfgs
    settings = {"max_calls": 3, "damping": 0.0}
    three = Way("", partial(denoise, denoiser, asked, settings))
    yield Way(f"{name}, 3 calls, then BFGS", partial(polish, three, bfgs))


def measure(ends: Sequence[End], targets: Sequence[Target]) -> dict[str, Any]:
    """Measure the ends of relaxations of each structure."""
    found = {"rmsd": [], "energy": []}
    for end, target in zip(ends, targets, strict=True):
        n = torch.tensor([len(end.pos)])
        rmsd = distances(
            torch.from_numpy(end.pos),
            torch.from_numpy(target.atoms.positions),
            torch.zeros(len(end.pos), dtype=torch.long),
            n,
            fixed=torch.from_numpy(fixed_atoms(target.atoms)),
            cell=torch.from_numpy(target.atoms.cell.array.copy())[None],
        ).rmsd.item()
        found["rmsd"].append(round(rmsd, 5))
        found["energy"].append(round(labels_in_emt(target.at(end.pos))[0] - target.energy, 5))
    return {
        **found,
        "calls": [end.calls for end in ends],
        "converged": [end.converged for end in ends],
        "seconds": round(sum(end.seconds for end in ends) / len(ends), 4),
    }


def forces_mae(path: Path, src: Path) -> float:
    """Return the mean error of a model's force components on free atoms of labelled data, eV/Å."""
    records = list(open_dataset(src))
    atoms = [data_to_atoms(data) for data in records]
    errors = []
    for data, one, found in zip(records, atoms, ModelForces(path)(atoms), strict=True):
        errors.append(np.abs(found - data.force.numpy())[~fixed_atoms(one)].ravel())
    return float(np.concatenate(errors).mean())


def table(results: dict[str, dict[str, dict]]) -> str:
    """Format medians as a Markdown table: Å, eV, and calls."""
    names = list(next(iter(results.values())))
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for way, by_start in results.items():
        cells = []
        for name in names:
            found = by_start[name]
            rmsd, energy, calls = (np.median(found[k]) for k in ("rmsd", "energy", "calls"))
            cell = f"{rmsd:.3f} Å, {energy:.2f} eV"
            cells.append(cell + f", {calls:g}" * bool(calls))
        rows.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(rows)


def format_result(result: dict[str, Any]) -> str:
    """Format a result as text and a Markdown table."""
    lines = [f"{len(result['sids'])} structures of `{result['data']}`, medians:"]
    lines += ["", table(result["ways"])]
    if errors := result["forces_mae"]:
        named = ", ".join(f"{name} {value:.4f}" for name, value in errors.items())
        lines += ["", f"MAE of forces, eV/Å: {named}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="of dens data demo --relaxed")
    what.add_argument("--table", type=Path, nargs="+", help="only format results that --out wrote")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=FILE", help="repeat for several"
    )
    parser.add_argument("--noise", type=float, nargs="+", default=[0.05, 0.1, 0.2], help="Å")
    parser.add_argument("--labelled", type=Path, help="data to measure errors of forces on")
    parser.add_argument("--without-bfgs", action="store_true", help="it takes most of the time")
    parser.add_argument("--first-n", type=int, help="structures to take")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n\n".join(format_result(json.loads(p.read_text())) for p in arguments.table))
        return
    torch.set_num_threads(1)
    targets = read_targets(arguments.data, arguments.first_n)
    by_start: dict[str, list[Atoms]] = {}
    for target in targets:
        for name, atoms in starts_of(target, arguments.noise):
            by_start.setdefault(name, []).append(atoms)
    models = [(name, Path(path)) for name, path in (m.split("=", 1) for m in arguments.model)]
    result = {"commit": commit(), "hardware": hardware("cpu"), "sids": [t.sid for t in targets]}
    result["data"] = arguments.data.name
    result |= {"forces_mae": {}, "ways": {}}
    bfgs_too = not arguments.without_bfgs
    ways = [Way("before", stay), *(way for m in models for way in ways_of(*m, bfgs_too))]
    ways += [Way("BFGS in EMT", partial(optimise, forces_in_emt))] * bfgs_too
    starts = [atoms for own in by_start.values() for atoms in own]
    for way in ways:
        ends, n = way.run(starts), len(targets)
        result["ways"][way.name] = {
            name: measure(ends[i * n : (i + 1) * n], targets) for i, name in enumerate(by_start)
        }
        print(table({way.name: result["ways"][way.name]}).splitlines()[-1], flush=True)
        _write(arguments.out, result)
    for name, path in models if arguments.labelled else ():
        if isinstance(load_denoiser(path, cpu=True), ZeroForceDenoiser):
            result["forces_mae"][name] = forces_mae(path, arguments.labelled)
    _write(arguments.out, result)
    print(f"\n{format_result(result)}")


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

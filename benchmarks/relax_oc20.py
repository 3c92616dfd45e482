"""Relax adsorbates on slabs that were left out of training, and score them as IS2RS does.

    OMP_NUM_THREADS=1 python -m benchmarks.relax_oc20 --data relaxations/ --runs runs/oc20_relax \
      --out oc20.json

The data are trajectories, a relaxation in each. In every fold a part of them is left out, MoreRed
learns from the others, half of the time from pairs of first and last frames, and relaxes the first
frames of those left out. Scored are the free atoms, beside the first frame itself as the answer.
``dens relax`` refuses structures with an element that was not trained; here they are relaxed too,
and counted. What is trained is kept, and training that was stopped goes on when the command is
given again.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from fairchem.core.modules.evaluator import average_distance_within_threshold
from torch import Tensor

from benchmarks.measure import commit, hardware
from benchmarks.relaxation.molecules import note, read_set
from benchmarks.training import run_dens, train
from dens.data.convert.build import info_file
from dens.fairchem1.morered.denoisers import load_denoiser
from dens.process import keep_freed_memory
from dens.relax.atoms.conversion import Limits, to_structures
from dens.relax.loop import relax_structures
from dens.relax.quality import distances
from dens.relax.structures import Structure

CONFIG = "configs/oc20/eqv2_morered_demo.yml"
BATCH = 4  # structures: these slabs are four times the size of the demo's
START, RELAXED = "the first frame", "MoreRed"


def convert(files: Sequence[Path], out: Path) -> Path:
    """Convert relaxations to an LMDB folder of pairs, unless it is there.

    Raises:
        ValueError: the conversion failed, or what is there was made of other files.
    """
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        options = ["--labels", "none", "--pairs", "first-last", "--out", out]
        run_dens(["data", "convert", *files, *options], out.with_suffix(".log"))
    sources = json.loads(info_file(out).read_text(encoding="utf-8"))["sources"]
    if [source["sid"] for source in sources] != [file.stem for file in files]:
        raise ValueError(f"{out} was made of other trajectories: choose another folder (--runs)")
    return out


def train_fold(name: str, data: Path, n_train: int, args: argparse.Namespace) -> Path:
    """Train on the relaxations of a fold; return the checkpoint."""
    epochs = max(1, round(args.steps / math.ceil(n_train / BATCH)))
    settings = [
        "--seed",
        str(args.seed),
        f"--dataset.train.src={data / 'train'}",
        f"--dataset.val.src={data / 'left_out'}",  # nothing is chosen by it
        f"--dataset.relax.src={data / 'left_out'}",
        f"--optim.batch_size={BATCH}",
        f"--optim.max_epochs={epochs}",
        f"--optim.eval_every={epochs * math.ceil(n_train / BATCH)}",
        f"--optim.scheduler_params.warmup_epochs={max(1, epochs // 10)}",
        "--optim.watch.denoising_structures=0",
        "--optim.watch.gradients_every=0",
    ]
    return train(CONFIG, name, args.runs, settings)


def relax_fold(checkpoint: Path, left_out: Path, names: Sequence[str], seed: int) -> list[dict]:
    """Relax first frames; return the score of each system, and its elements that are new."""
    denoiser = load_denoiser(checkpoint, cpu=True, seed=seed)
    data = read_set(left_out, 1)
    limits = Limits.of(denoiser)
    true = to_structures(data.atoms, limits._replace(elements=None), names)
    pairs = zip(true, data.given, strict=True)
    starts = [Structure(s.numbers, torch.from_numpy(pos), s.cell, s.fixed) for s, pos in pairs]
    relaxed = relax_structures(starts, denoiser, seed=seed)
    found = []
    for name, target, start, end in zip(names, true, starts, relaxed, strict=True):
        new = sorted({*target.numbers.tolist()} - {*(limits.elements or ())})
        found.append(
            {
                "name": name,
                "new_elements": [chemical_symbols[z] for z in new],
                "calls": end.calls,
                "converged": end.converged,
                START: score(start.pos, target),
                RELAXED: score(end.pos, target),
            }
        )
    return found


def score(pos: Tensor, target: Structure) -> dict[str, float]:
    """Score the free atoms of a structure at ``pos``, (n_atoms, 3), Å.

    Returns:
        ``adwt``, fairchem's average distance within threshold; ``distance``, the mean distance, Å.
    """
    free, batch = target.free, torch.zeros(len(pos), dtype=torch.long)
    n_free, n_atoms = free.sum()[None], torch.tensor([len(pos)])
    cell, periodic = target.cell[None], torch.ones(3, dtype=torch.bool)
    true = {"positions": target.pos[free], "natoms": n_free, "cell": cell, "pbc": periodic}
    found = average_distance_within_threshold({"positions": pos[free], "natoms": n_free}, true)
    apart = distances(pos, target.pos, batch, n_atoms, fixed=~free, cell=cell).mean.item()
    return {"adwt": round(float(found["metric"]), 5), "distance": round(apart, 5)}


def format_result(result: dict[str, Any]) -> str:
    """Format a table: all systems, and those whose elements were all trained."""
    about, systems = result["about"], result["systems"]
    converged = sum(s["converged"] for s in systems)
    lines = [
        f"{len(systems)} systems in {about['folds']} folds, {about['steps']} steps of {BATCH}, "
        f"seed {about['seed']}, {about['hardware']}; {converged} relaxations have converged.",
        "",
        "| systems | answer | ADwT | mean distance, Å: median / mean | nearer | calls: median |",
        "|---|---|---|---|---|---|",
    ]
    known = [s for s in systems if not s["new_elements"]]
    for label, chosen in (("all", systems), ("no new elements", known)):
        for answer in (START, RELAXED) if chosen else ():
            away = np.array([s[answer]["distance"] for s in chosen])
            adwt = np.mean([s[answer]["adwt"] for s in chosen])
            cells = [f"{label}: {len(chosen)}", answer, f"{adwt:.3f}"]
            cells += [f"{np.median(away):.3f} / {away.mean():.3f}", "", ""]
            if answer == RELAXED:
                nearer = np.mean([s[RELAXED]["distance"] < s[START]["distance"] for s in chosen])
                cells[-2:] = [f"{nearer:.0%}", f"{np.median([s['calls'] for s in chosen]):g}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all folds, and return the result.

    Raises:
        ValueError: wrong data or options; a process failed.
    """
    files = sorted(args.data.resolve().glob("*.traj"))
    if not 2 <= args.folds <= len(files):
        raise ValueError(
            f"--folds must be from 2 to {len(files)}, the number of trajectories in {args.data}, "
            f"got {args.folds}"
        )
    systems = []
    for fold in range(args.folds):
        name = f"fold{fold}of{args.folds}"
        out = files[fold :: args.folds]
        rest = [file for file in files if file not in out]
        data = args.runs.resolve() / "data" / name
        note(f"{name}: learns from {len(rest)} systems, relaxes {len(out)}")
        left_out = convert(out, data / "left_out")
        convert(rest, data / "train")
        checkpoint = train_fold(name, data, len(rest), args)
        systems += relax_fold(checkpoint, left_out, [path.stem for path in out], args.seed)
    about = {key: getattr(args, key) for key in ("folds", "steps", "seed")}
    about |= {"hardware": hardware("cpu"), "torch": torch.__version__, "commit": commit()}
    return {"about": about, "systems": sorted(systems, key=lambda system: system["name"])}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    program = argparse.ArgumentParser(
        prog="python -m benchmarks.relax_oc20", description=__doc__.splitlines()[0]
    )
    add = program.add_argument
    add("--data", type=Path, help="folder of trajectories, a relaxation in each")
    add("--runs", type=Path, help="where to train; what is trained there is kept")
    add("--folds", type=int, default=5, help="parts, left out in turn  [5]")
    add("--steps", type=int, default=200, help="of training, about, 4 systems each  [200]")
    add("--seed", type=int, default=0, help="of training and relaxation")
    add("--out", type=Path, help="JSON file")
    add("--table", type=Path, help="format a stored result, and stop")
    args = program.parse_args(argv)
    try:
        if args.table:
            print(format_result(json.loads(args.table.read_text(encoding="utf-8"))))
            return
        if args.data is None or args.runs is None:
            raise ValueError("--data and --runs are needed")
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        keep_freed_memory()
        result = run(args)
    except ValueError as error:
        program.error(str(error))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(format_result(result))


if __name__ == "__main__":
    main()

"""Compare a training step with DeNS on fairchem-core 2 with that of its stock unit.

    OMP_NUM_THREADS=1 python -m benchmarks.step2 --out step2.json

The arms are the recipes of eSEN, with direct forces or with forces and stress by gradient, and
their twins without DeNS, on made-up slabs. A step is everything from a batch to new weights:
corruption, labels, graph, forward, losses, backward, clipping, AdamW, moving average, metrics of
the step. Arms take turns in one process, and times are compared within each round. On a CPU the
time is that of the process.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ase.build import add_adsorbate, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect

from benchmarks.measure import commit, hardware, in_turns, seconds_of, summary

CONFIGS = Path(__file__).parents[1] / "configs" / "fairchem2"
WARM_UP = 3  # steps
# case: recipe without DeNS, recipe with it
RECIPES = {
    "direct": ("esen_direct_baseline", "esen_direct"),
    "conserving": ("esen_conserving_baseline", "esen_conserving"),
}
SCALES = ("normalizer_rmsd=1.0", f"elem_refs=[{','.join(['0.0'] * 101)}]")
# share of the structures that are corrupted, by arm
PROB = {"stock": None, "DeNS, clean batch": 0.0, "DeNS, r = 0.5": 1.0}


def write_slabs(folder: Path, n: int, seed: int = 0) -> Path:
    """Write slabs of 19 atoms with random energies, forces and stresses as aselmdb."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with connect(folder / "data.aselmdb", type="aselmdb") as database:
        for _ in range(n):
            atoms = fcc111("Cu", (2, 3, 3), vacuum=6.0)
            add_adsorbate(atoms, "O", 1.3, "fcc")
            atoms.pbc = True
            atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
            atoms.rattle(0.1, rng=rng)
            labels = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
            atoms.calc = SinglePointCalculator(atoms, **labels, stress=0.01 * rng.normal(size=6))
            database.write(atoms)
    np.savez(folder / "metadata.npz", natoms=np.full(n, 19))
    return folder


class Arm:
    """Unit of fairchem-core 2 that trains on one batch again and again; a call is a step.

    Args:
        config: file of a recipe.
        overrides: of the recipe, as on the command line.
        n: number of structures in the batch.
    """

    def __init__(self, config: Path, overrides: list[str], n: int) -> None:
        import hydra
        from fairchem.core._cli import get_hydra_config_from_yaml

        config = get_hydra_config_from_yaml(str(config), overrides)
        Path(config.job.metadata.log_dir).mkdir(parents=True)
        torch.manual_seed(0)
        runner = hydra.utils.instantiate(config.runner)
        self.unit, data = runner.train_eval_unit, runner.train_dataloader
        phase = SimpleNamespace(dataloader=data, max_steps=runner.max_steps, max_epochs=1)
        self.state = SimpleNamespace(train_state=phase)
        self.batch = data.collate_fn([data.dataset[i] for i in range(n)])
        self.unit.announces = False
        self.unit.on_train_start(self.state)

    def __call__(self) -> None:
        self.unit.train_step(self.state, copy.deepcopy(self.batch))
        self.unit.train_progress.increment_step()


def make_arms(case: str, data: Path, more: list[str], n: int, device: str) -> dict[str, Arm]:
    """Build the arms of a case, on the structures of ``data``."""
    plain, with_dens = RECIPES[case]
    arms = {}
    for name, prob in PROB.items():
        overrides = [
            *SCALES,
            *(f"{split}_src={data}" for split in ("train", "val")),
            f"job.device_type={'CPU' if device == 'cpu' else 'CUDA'}",
            f"job.run_dir={data.parent / f'{case}-{len(arms)}'}",
            "++job.debug=True",
            *(f"runner.{loader}_dataloader.num_workers=0" for loader in ("train", "eval")),
            *more,
        ]
        if prob is not None:
            overrides.append(f"runner.train_eval_unit.dens.prob={prob}")
        recipe = plain if prob is None else with_dens
        arms[name] = Arm(CONFIGS / f"{recipe}.yaml", overrides, n)
    return arms


def measure(arms: dict[str, Arm], rounds: int, device: str) -> dict[str, Any]:
    """Measure steps in turns: seconds by arm, and ratios to the stock unit by round."""
    for _ in range(WARM_UP):
        for arm in arms.values():
            arm()
    timed: dict[str, Callable[[], float]] = {
        name: lambda arm=arm: seconds_of(arm, device) for name, arm in arms.items()
    }
    found = in_turns(timed, rounds)
    ratios = {
        name: summary([a / b for a, b in zip(found[name], found["stock"], strict=True)])
        for name in arms
        if name != "stock"
    }
    return {"seconds": {name: summary(t) for name, t in found.items()}, "ratios": ratios}


def table(result: dict[str, Any]) -> str:
    """Format the measurements for docs/fairchem2.md."""
    lines = ["| eSEN | arm | s / step | to stock | quartiles |", "|---|---|---|---|---|"]
    for case, found in result["cases"].items():
        for arm, seconds in found["seconds"].items():
            ratio = found["ratios"].get(arm)
            of_stock = "|"
            if ratio is not None:
                of_stock = f"{ratio['median']:.3f} | {ratio['low']:.3f} - {ratio['high']:.3f}"
            lines.append(f"| {case} | {arm} | {seconds['median']:.3g} | {of_stock} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--structures", type=int, default=8, help="in a batch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipes")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    from dens.fairchem2.check.one_step import process_group

    if args.device == "cpu":
        torch.set_num_threads(1)
    result: dict[str, Any] = {
        "structures": args.structures,
        "rounds": args.rounds,
        "set": args.set,
        "hardware": hardware(args.device),
        "torch": torch.__version__,
        "commit": commit(),
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder, process_group(args.device == "cpu"):
        data = write_slabs(Path(folder) / "slabs", args.structures)
        for case in args.cases:
            arms = make_arms(case, data, args.set, args.structures, args.device)
            result["cases"][case] = measure(arms, args.rounds, args.device)
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Compare inference of a DeNS checkpoint with plain EquiformerV2 of the same weights.

    python -m benchmarks.inference --size S

One prediction of energy and forces for a slab, through a trainer's ``predict`` (as ``--mode
predict`` and relaxations call it) and through ASE calculators. ``plain`` is fairchem's own
EquiformerV2, in its own trainer and ``OCPCalculator``, from the exported checkpoint. The arms take
turns; ratios are medians over rounds. Memory is the peak of a prediction above what was there
before it, in a process of its own for each arm.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from ase.build import add_adsorbate, fcc111
from fairchem.core import OCPCalculator
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs

from benchmarks.arms import COMMON, SIZES
from benchmarks.measure import commit, hardware, in_turns, last_number, peak, seconds_of, summary
from dens.fairchem1.checkpoints.calculator import load_calculator
from dens.fairchem1.checkpoints.export import export_checkpoint

ARMS = ["trainer, plain", "trainer, DeNS", "ASE, plain", "ASE, DeNS", "ASE, DeNS, fast"]
RATIOS = [
    ("trainer, DeNS", "trainer, plain"),
    ("ASE, DeNS", "ASE, plain"),
    ("ASE, DeNS, fast", "ASE, plain"),
]
HEADS = {"energy": "dens.EnergyHead", "forces": "dens.ForceHead", "noise": "dens.NoiseHead"}


def trainer_settings(size: dict) -> dict:
    """Return the arguments of a DeNS trainer without data."""
    model = {
        "name": "hydra",
        "backbone": {"model": "dens.EquiformerV2Backbone", "fast": False, **COMMON, **size},
        "heads": {name: {"module": module} for name, module in HEADS.items()},
        "pass_through_head_outputs": True,
        "otf_graph": True,
    }
    free = {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True}
    return {
        "task": {},
        "model": model,
        "dataset": [{"key_mapping": {"y": "energy", "force": "forces"}}],
        "outputs": {"energy": {"level": "system"}, "forces": free},
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 2}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
        "evaluation_metrics": {
            "metrics": {"energy": ["mae"], "forces": ["mae"]},
            "primary_metric": "forces_mae",
        },
        "optimizer": {
            "batch_size": 1,
            "optimizer": "AdamW",
            "dens": {"prob": 0.5, "sigma": 0.1, "denoising_coefficient": 10.0},
        },
        "identifier": "",
        "local_rank": 0,
        "is_debug": True,
        "inference_only": True,
    }


def predictors(size: dict, cpu: bool, arms: list[str]) -> dict[str, Callable[[], object]]:
    """Return a function for each arm that predicts once, all with the same random weights."""
    settings = trainer_settings(size)
    torch.manual_seed(0)
    trainer = registry.get_trainer_class("dens")(**copy.deepcopy(settings), cpu=cpu)
    slab = fcc111("Cu", size=(4, 4, 4), vacuum=10.0, periodic=True)
    slab.rattle(0.1, seed=0)
    add_adsorbate(slab, "O", 1.5, "fcc")
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder, "dens.pt"), Path(folder, "plain.pt")
        config = {**settings, "optim": settings["optimizer"], "dataset": settings["dataset"][0]}
        weights = trainer.model.state_dict()
        torch.save({"state_dict": weights, "normalizers": {}, "config": config}, path)
        export_checkpoint(path, plain)
        calculators = {}
        if any("plain" in arm for arm in arms):
            calculators["plain"] = OCPCalculator(checkpoint_path=plain, cpu=cpu, seed=0)
        for name, fast in (("DeNS", False), ("DeNS, fast", True)):
            if f"ASE, {name}" in arms:
                calculators[name] = load_calculator(path, cpu=cpu, fast=fast)
    trainers = {"DeNS": trainer}
    if "plain" in calculators:
        trainers["plain"] = calculators["plain"].trainer
    return {arm: _predictor(arm, trainers, calculators, slab) for arm in arms}


def _predictor(arm: str, trainers, calculators, slab) -> Callable[[], object]:
    way, name = arm.split(", ", 1)
    if way == "ASE":
        return lambda: calculators[name].calculate(slab, ["energy"], [])
    convert = loader(slab)
    return lambda: trainers[name].predict(convert(), per_image=False, disable_tqdm=True)


def loader(slab) -> Callable[[], object]:
    """Return a function that makes a batch of one structure, as the data loader would."""
    data = AtomsToGraphs(r_energy=False, r_forces=False, r_pbc=True).convert(slab)
    return lambda: data_list_collater([data.clone()], otf_graph=True)


def times(predict: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list]:
    """Return the seconds of each arm in each round, after a warm-up round."""
    arms = {arm: partial(seconds_of, run, device) for arm, run in predict.items()}
    return {arm: seconds[1:] for arm, seconds in in_turns(arms, rounds + 1).items()}


def memory(predict: Callable[[], object], device: str) -> float:
    """Return the peak memory of the second prediction above the memory before it, MiB."""
    predict()
    return peak(predict, device)


def memory_of(arm: str, args: argparse.Namespace) -> float:
    """Measure :func:`memory` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inference", "--memory-of", arm]
    command += ["--size", args.size, "--device", args.device]
    return last_number(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    setup_imports()
    cpu, size = args.device == "cpu", SIZES[args.size]
    if cpu:
        torch.set_num_threads(1)
    if args.memory_of:
        predict = predictors(size, cpu, [args.memory_of])
        print(memory(predict[args.memory_of], args.device))
        return
    found = times(predictors(size, cpu, ARMS), args.rounds, args.device)
    used = {arm: memory_of(arm, args) for arm in ARMS}
    ratios = {
        f"{over} / {under}": summary(
            [a / b for a, b in zip(found[over], found[under], strict=True)]
        )
        for over, under in RATIOS
    }
    print(f"\n{hardware(args.device)}, torch {torch.__version__}, commit {commit()}\n")
    print("| arm | s | memory, MiB |\n|---|---|---|")
    for arm, values in found.items():
        print(f"| {arm} | {summary(values)['median']:.3g} | {used[arm]:.0f} |")
    print("\n| ratio of times | median | quartiles |\n|---|---|---|")
    for name, s in ratios.items():
        print(f"| {name} | {s['median']:.3f} | {s['low']:.3f} - {s['high']:.3f} |")
    if args.out:
        result = {"seconds": found, "memory_MiB": used, "ratios": ratios}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

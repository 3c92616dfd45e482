"""Train MoreRed on QM7 with one thing changed at a time, at equal steps, and compare relaxations.

    OMP_NUM_THREADS=1 python -m benchmarks.relax_ablations --data data/qm7 --runs runs/ablations \
      --out ablations.json

Two of the changes are no options of dens but subclasses here: a detached time, and scaled input.
What is trained is kept, and training that was stopped goes on when the command is given again.
"""

from __future__ import annotations

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.relaxation.__main__ import main as evaluate
from benchmarks.relaxation.molecules import note
from benchmarks.relaxation.table import format_result, read_results
from benchmarks.training import train
from dens.fairchem1.config.methods.morered import parse_settings_of
from dens.fairchem1.morered.heads import MoreRedHead, TimeHead
from dens.fairchem1.morered.train import MoreRedTrainer
from dens.objective import Progress
from dens.relax.objective import MoreRedObjective

CONFIG = "configs/qm7/eqv2_morered.yml"
BATCH = 16  # structures, of the config
_HERE = "benchmarks.relax_ablations"  # also where it runs as __main__


class DetachedHead(MoreRedHead):
    """Head whose time is trained by the error of the time alone, not by that of the noise."""

    def forward(self, data, emb) -> dict[str, Tensor]:
        data.told_time = TimeHead.forward(self, data, emb)["time"].detach()
        return super().forward(data, emb)


class ScaledObjective(MoreRedObjective):
    r"""Training on structures that shrink with their noise, as published.

    .. math:: p \leftarrow \sqrt{\bar\alpha_t}\, p = p / \sqrt{1 + \sigma_t^2}

    Relaxations start from structures of full size, as published, and keep it.
    """

    def apply(self, batch: Any, draws: Any, progress: Progress) -> None:
        super().apply(batch, draws, progress)
        scale = (1 + batch.sigma.square()).rsqrt()
        batch.pos = batch.pos * scale[batch.batch][:, None]


class ScaledTrainer(MoreRedTrainer):
    """Trainer of :class:`ScaledObjective`."""

    objective_class = ScaledObjective

    @classmethod
    def parse_objective(cls, optim: Mapping[str, Any]) -> ScaledObjective:
        return ScaledObjective(parse_settings_of(optim))


def _lmax(degree: int) -> list[str]:
    sizes = {"lmax_list": degree, "mmax_list": min(degree, 2)}
    return [f"--model.backbone.{name}=[{size}]" for name, size in sizes.items()]


ARMS = {  # options of training
    "as shipped": [],
    "max_level 1000": ["--optim.morered.max_level=1000"],
    "time weight 0.1": [
        "--loss_functions=[{'noise': {'fn': 'mse', 'coefficient': 0.9}}, "
        "{'time': {'fn': 'mse', 'coefficient': 0.1}}]"
    ],
    "time detached": [f"--model.heads.morered.module={_HERE}.DetachedHead"],
    "input scaled": [f"--trainer={_HERE}.ScaledTrainer"],
    "lmax 1": _lmax(1),
    "lmax 3": _lmax(3),
}


def train_arm(name: str, args: argparse.Namespace) -> list[Path]:
    """Train the seeds of an arm; return their checkpoints."""
    data = args.data.resolve()
    common = [
        f"--dataset.train.src={data / 'train'}",
        f"--dataset.val.src={data / 'val'}",
        f"--dataset.train.sample_n={args.steps * BATCH}",
        "--dataset.val.sample_n=None",  # else that of train
        "--optim.max_epochs=1",
        "--optim.watch.denoising_structures=0",
        "--optim.watch.gradients_every=0",
    ]
    found = []
    for seed in args.seeds:
        run = f"{name.replace(' ', '_')}-seed{seed}"
        note(f"{run}: {args.steps} steps")
        found.append(train(CONFIG, run, args.runs, ["--seed", str(seed), *common, *ARMS[name]]))
    return found


def evaluate_arm(name: str, checkpoints: Sequence[Path], args: argparse.Namespace) -> Path:
    """Relax the test structures with the seeds of an arm; return the file of the result."""
    out = args.runs / f"{name.replace(' ', '_')}.result.json"
    words = ["--data", args.data / "test", "--every", args.every, "--name", name, "--out", out]
    evaluate([*map(str, words), "--checkpoint", *map(str, checkpoints)])
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    program = argparse.ArgumentParser(
        prog="python -m benchmarks.relax_ablations", description=__doc__.splitlines()[0]
    )
    add = program.add_argument
    add("--data", type=Path, required=True, help="folder with train, val and test, as of QM7")
    add("--runs", type=Path, required=True, help="where to train; what is trained there is kept")
    add("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="which changes  [all]")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="of training  [0 1]")
    add("--steps", type=int, default=200, help="of training, 16 structures each  [200]")
    add("--every", type=int, default=10, metavar="N", help="relax every N-th test structure  [10]")
    add("--out", type=Path, help="JSON file")
    args = program.parse_args(argv)
    try:
        if missing := [s for s in ("train", "val", "test") if not (args.data / s).is_dir()]:
            raise ValueError(f"--data: {args.data} has no folder {' and no '.join(missing)}")
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
        trained = {name: train_arm(name, args) for name in args.arms}
    except ValueError as error:
        program.error(str(error))
    parts = [evaluate_arm(name, checkpoints, args) for name, checkpoints in trained.items()]
    result = read_results(parts)
    result["about"]["steps"] = args.steps
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(format_result(result))


if __name__ == "__main__":
    main()

"""``dens check``: find what would end or spoil a run in its first hour, in seconds.

Every check is made, whatever the others find, unless it needs what they found missing. Nothing is
left behind: the trainer is built in a temporary folder, without logger, and discarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.utils import build_config

from dens.denoising.objective import DeNSObjective
from dens.fairchem1.check.data import (
    Split,
    check_apart,
    check_elements,
    check_labels,
    check_signs,
    check_sizes,
    open_splits,
)
from dens.fairchem1.check.scales import check_scales
from dens.fairchem1.check.settings import check_disk, check_settings
from dens.fairchem1.check.step import (
    built,
    check_resumed,
    choose_records,
    evaluation_step,
    sizes_of,
    train_step,
)
from dens.fairchem1.checkpoints.trained_settings import adopt_settings
from dens.fairchem1.config.read import as_config_error, split_settings
from dens.fairchem1.launch import parse_args
from dens.objective import Objective
from dens.runs.check.corruption import check_denoising
from dens.runs.check.expectation import check_expectation
from dens.runs.check.findings import Findings, printed_findings
from dens.runs.check.memory import check_memory
from dens.runs.check.schedule import Sampling, check_schedule

SAMPLE = 300  # structures of each split that are read, by default
_MAX_ELEMENTS = 90  # fairchem's default of max_num_elements


def check_command(
    config_path: Path,
    *,
    num_gpus: int = 1,
    checkpoint: Path | None = None,
    sample: int = SAMPLE,
    overrides: Sequence[str] = (),
) -> bool:
    """Check a training config and print the findings.

    Args:
        config_path: the config.
        num_gpus: ranks of the planned run; the check itself takes one.
        checkpoint: the checkpoint with which the planned run starts.
        sample: structures of each split to read.
        overrides: overrides of the config, or options of the launcher.

    Returns:
        Whether there are no errors.

    Raises:
        ConfigError: the config cannot be read, or an override is unknown.
    """
    argv = ["--config-yml", str(config_path), "--num-gpus", str(num_gpus)]
    argv += ["--checkpoint", str(checkpoint)] if checkpoint else []
    args, changes = parse_args([*argv, *overrides])
    args.cpu |= not torch.cuda.is_available()
    with printed_findings() as findings:
        with as_config_error(config_path):
            config = build_config(args, changes)
        examine(config, findings, sample)
    return not findings.count("error")


def examine(config: Mapping[str, Any], findings: Findings, sample: int = SAMPLE) -> None:
    """Make all checks of a config that `dens.fairchem1.launch` can run.

    Args:
        config: with the keys that fairchem's ``build_config`` adds.
        sample: structures of each split to read.
    """
    config, objective = check_settings(config, findings)
    usable = not findings.count("error")
    if usable:
        with findings.attempt("trainer"):
            config = adopt_settings(config, partial(findings.warn, "checkpoint"))
    usable = not findings.count("error")
    if "datasets" in config:
        findings.warn("data", "fairchem's multitask layout (datasets) is not looked into")
        return
    splits: dict[str, Split] = {}
    with findings.attempt("data"):
        splits = open_splits(config, sample, findings)
    _check_data(config, splits, objective, findings)
    if "train" in splits:
        _check_training(config, splits["train"], objective, findings)
    if usable:
        _check_step(config, splits, sample, findings)
    else:
        findings.warn("step", "not tried: the errors above come first")


def _check_data(
    config: Mapping[str, Any],
    splits: dict[str, Split],
    objective: Objective | None,
    findings: Findings,
) -> None:
    outputs = config.get("outputs") or {}
    targets = _targets(config)
    made = () if objective is None else objective.makes
    levels = {n: (outputs.get(n) or {}).get("level", "system") for n in targets if n not in made}
    if not targets:  # the older layout
        levels = {"energy": "system", "forces": "atom"}
    for split in splits.values():
        findings.run("labels", check_labels, split, levels)
    model = config.get("model") or {}
    backbone = model.get("backbone", model)
    limit = backbone.get("max_num_elements", _MAX_ELEMENTS)
    findings.run("elements", check_elements, splits, limit)
    findings.run("data", check_apart, splits)


def _targets(config: Mapping[str, Any]) -> list[str]:
    """List what has a loss; nothing in the older layout."""
    return [name for term in config.get("loss_functions") or [] for name in term]


def _check_training(
    config: Mapping[str, Any], train: Split, objective: Objective | None, findings: Findings
) -> None:
    optim = config.get("optim") or {}
    findings.run("data", check_sizes, train, optim, config["world_size"])
    if objective is None or not objective.makes:
        findings.run("forces", check_signs, train)
        seed, applies_dens = config["seed"] or 0, objective is not None
        findings.run("normaliser", check_scales, train, _targets(config), seed, applies_dens)
    if isinstance(objective, DeNSObjective):
        findings.run("denoising", check_denoising, objective.config, list(train.sound.values()))
    if isinstance(optim.get("max_epochs"), int):
        ranks = config["world_size"] // (config["gp_gpus"] or 1)
        validates = "val" in split_settings(config["dataset"])
        findings.run("steps", check_schedule, optim, len(train.dataset), ranks, validates)
        if isinstance(objective, DeNSObjective):
            length = len(train.dataset), optim["max_epochs"]
            finetuned = bool({"pretrained", "finetune_config"} & {*config["model"]})
            findings.run("denoising", check_expectation, objective.config, *length, finetuned)


def _sampling(config: Mapping[str, Any], train: Split) -> Sampling:
    ranks = config["world_size"] // (config["gp_gpus"] or 1)
    return Sampling.of(config["optim"], len(train.dataset), ranks)


def _check_step(
    config: Mapping[str, Any], splits: dict[str, Split], sample: int, findings: Findings
) -> None:
    train, val = splits.get("train"), splits.get("val")
    if train is None or not train.sound:
        findings.warn("step", "not tried: there is no structure to take it on")
        return
    batch_size = config["optim"].get("batch_size", 1)
    with findings.attempt("trainer"), built(config, sample) as trainer:
        for notice in getattr(trainer, "checkpoint_notices", ()):
            if all(notice != line.detail for line in findings.lines):
                findings.ok("checkpoint", notice)
        findings.run("resume", check_resumed, trainer, _sampling(config, train))
        records = choose_records(train, batch_size, trainer.device.type == "cpu")
        with findings.attempt("step"):
            footprint = train_step(trainer, records, findings)
            check_memory(footprint, sizes_of(train), batch_size, trainer.device, findings)
            check_disk(config["run_dir"], footprint, findings)
        if val is not None and val.sound:
            smallest = min(val.sound.values(), key=lambda data: int(data.natoms))
            findings.run("validation", evaluation_step, trainer, [smallest])

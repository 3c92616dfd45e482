"""``dens check`` with fairchem-core 2: find what would end or spoil a run in its first hour.

Every check is made, whatever the others find, unless it needs what they found missing. Nothing is
left behind: the unit is built in a temporary folder, without logger, and discarded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from dens.denoising.config import DeNSConfig, parse_config
from dens.fairchem2.check.compose import compose
from dens.fairchem2.check.datasets2 import LOADERS, Records, open_records
from dens.fairchem2.check.length import check_length
from dens.fairchem2.check.one_step import build_unit, choose, on_cpu, process_group, train_step
from dens.fairchem2.check.parameters import check_parameters
from dens.fairchem2.check.pretrained import check_pretrained, is_finetuned
from dens.fairchem2.check.task_data import (
    Sampled,
    check_apart,
    check_elements,
    check_names,
    check_scales,
    read_sample,
)
from dens.runs.check.corruption import check_denoising
from dens.runs.check.expectation import check_expectation
from dens.runs.check.findings import Findings, printed_findings
from dens.settings import ConfigError

_SECTION = "runner.train_eval_unit.dens"
_MAX_ELEMENTS = 100  # fairchem's default of max_num_elements


def check_command(
    config_path: Path,
    *,
    num_gpus: int = 1,
    checkpoint: Path | None = None,
    sample: int = 300,
    overrides: Sequence[str] = (),
) -> bool:
    """Check a training config and print the findings.

    Args:
        config_path: the config.
        num_gpus: planned ranks, if more than the config's scheduler has.
        checkpoint: refused: configs name it.
        sample: structures of each split to read; 0: all.
        overrides: as of fairchem's command line.

    Returns:
        Whether there are no errors.

    Raises:
        ConfigError: the config cannot be read, or an override is unknown.
    """
    if checkpoint is not None:
        raise ConfigError(
            "--checkpoint is for fairchem-core 1.10: configs of 2 name it, as "
            "runner.train_eval_unit.model.checkpoint_location"
        )
    with tempfile.TemporaryDirectory() as folder, printed_findings() as findings:
        own = [f"++job.run_dir={folder}", "++job.debug=True", "++job.logger=null"]
        config = compose(config_path, [*overrides, *own])
        examine(config, findings, sample, num_gpus)
    return not findings.count("error")


def examine(config: Any, findings: Findings, sample: int, num_gpus: int = 1) -> None:
    """Make all checks of a config from `compose`."""
    runner = OmegaConf.to_container(config, resolve=True)["runner"]
    check_parameters({"runner": runner}, findings)
    unit = runner.get("train_eval_unit")
    if not isinstance(unit, Mapping) or not isinstance(unit.get("tasks"), list):
        findings.error("settings", "expected runner.train_eval_unit with tasks, got none")
        return
    dens: DeNSConfig | None = None
    if isinstance(unit.get("dens"), Mapping):
        with findings.attempt("settings"):
            dens = parse_config(unit["dens"], _SECTION)
    usable = not findings.count("error")
    tasks = [task for task in unit["tasks"] if not task.get("inference_only")]
    splits = _read(runner, tasks, sample, findings)
    if splits:
        limit = ((unit.get("model") or {}).get("backbone") or {}).get("max_num_elements")
        findings.run("elements", check_elements, list(splits.values()), limit or _MAX_ELEMENTS)
        findings.run("data", check_apart, runner)
        findings.run("validation", check_names, runner, tasks)
    if train := splits.get("train"):
        findings.run("normaliser", check_scales, train, tasks)
        if dens is not None:
            findings.run("denoising", check_denoising, dens, list(train.sound.values()))
    with findings.attempt("checkpoint"):
        check_pretrained(unit, findings)
    if not usable or train is None or not train.sound:
        why = "the errors above come first" if not usable else "there is no structure to take it on"
        findings.warn("step", f"not tried: {why}")
        return
    _check_run(config, runner, train, dens, num_gpus, findings)


def _read(
    runner: Mapping[str, Any], tasks: list, sample: int, findings: Findings
) -> dict[str, Sampled]:
    splits: dict[str, Sampled] = {}
    opened: dict[str, Records] = {}
    for name in LOADERS:
        if runner.get(LOADERS[name]):
            with findings.attempt("data"):
                opened[name] = open_records(runner, name)
    if opened:
        sizes = ", ".join(f"{name} {len(records)}" for name, records in opened.items())
        findings.ok("data", f"{sizes} structures")
    for name, records in opened.items():
        with findings.attempt("labels"):
            splits[name] = read_sample(name, records, tasks, sample, findings)
    return splits


def _check_run(
    config: Any,
    runner: Mapping[str, Any],
    train: Sampled,
    dens: DeNSConfig | None,
    num_gpus: int,
    findings: Findings,
) -> None:
    """Take a step, and count those of the run."""
    job = config.job
    loader = None
    with process_group(on_cpu(config)):
        with findings.attempt("steps"):
            own = job.scheduler.num_nodes * job.scheduler.ranks_per_node
            ranks = max(num_gpus, own) // (job.graph_parallel.group_size or 1)
            make = hydra.utils.instantiate(config.runner.train_dataloader.batch_sampler_fn)
            sampler = make(dataset=train.records.host, num_replicas=ranks, rank=0)
            loader = DataLoader(train.records.host, batch_sampler=sampler)
            epochs = check_length(runner, len(loader), ranks, findings)
            if dens is not None and epochs is not None:
                finetuned = is_finetuned(runner["train_eval_unit"])
                check_expectation(dens, len(train.records), epochs, finetuned, findings)
        if loader is None:
            findings.warn("step", "not tried: the errors above come first")
            return
        with findings.attempt("unit"):
            unit = build_unit(config)
            with findings.attempt("step"):
                train_step(config, unit, loader, choose(train.hosts), findings)

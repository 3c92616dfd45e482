"""Configs with some values changed, and the errors that they are refused with."""

from __future__ import annotations

import copy

import pytest

from dens.fairchem1.config.settle import settle
from dens.settings import ConfigError
from helpers.trainers import STOCK_MODEL, trainer_config

SECTIONS = ("task", "model", "outputs", "dataset", "loss_functions", "evaluation_metrics")


def config(*changes: tuple[str, object], trainer="dens.DeNSTrainer") -> dict:
    """A sound config with some values set by the path of their key; a number is an index."""
    base = trainer_config("nowhere")
    found = {"trainer": trainer, "optim": base["optimizer"], **{k: base[k] for k in SECTIONS}}
    found["logger"] = {"name": "wandb", "project": "p"}
    found["slurm"] = {"constraint": "volta32gb"}
    if trainer != "dens.DeNSTrainer":
        found["model"] = copy.deepcopy(STOCK_MODEL)
        del found["optim"]["dens"]
    for key, value in changes:
        *path, last = key.split(".")
        section = found
        for name in path:
            section = section[int(name)] if name.isdigit() else section.setdefault(name, {})
        section[last] = value
    return found


def errors(*changes: tuple[str, object], **options) -> list[str]:
    with pytest.raises(ConfigError) as error:
        settle(config(*changes, **options))
    return str(error.value).splitlines()

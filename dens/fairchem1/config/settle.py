"""Settle a training config once, at each front door: translate older forms, check everything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import yaml
from fairchem.core.common import distutils
from fairchem.core.common.utils import setup_imports
from fairchem.core.trainers import OCPTrainer

from dens.data.checked import parse_on_bad
from dens.fairchem1.checkpoints.start import take_pretrained
from dens.fairchem1.config.rules import (
    check_names,
    check_primary_metric,
    check_shared_graphs,
    find_class,
    refuse_ignored,
    run_all,
)
from dens.fairchem1.config.sections import check_keys, check_optim, check_types
from dens.fairchem1.config.translate import is_foreign, translate
from dens.fairchem1.train.optimizer import as_floats
from dens.runs.monitor.settings import parse_monitor
from dens.settings import ConfigError


def settle(config: Mapping[str, Any], trainer: type | None = None) -> dict[str, Any]:
    """Return a config in the current form, all of whose settings are valid.

    A settled config is returned as it is. Neither data nor weights are read.

    Args:
        config: as read from YAML, with or without what the launcher adds.
        trainer: the trainer's class; by default the one that the config names.

    Raises:
        ConfigError: one line for each mistake: an unknown key; a number given as a string; invalid
            settings of dens, or ones that the trainer or the model would ignore; a DeNS trainer
            without DeNS settings, force loss or force output; an unknown optimizer, loss,
            metric, logger or format; a primary metric that is not computed.
    """
    config = dict(config)
    setup_imports(config)
    check_types(config)
    trainer = trainer or find_class("trainer", config.get("trainer", "ocp"), "trainer")
    objective = getattr(trainer, "objective_class", None)
    if objective is None:
        run_all(
            lambda: refuse_ignored(config, None),
            lambda: check_keys(config, trainer),
            lambda: check_shared_graphs(config),
            *_common_checks(config, trainer),
        )
        return _with_floats(config)
    if is_foreign(config.get("optim") or {}) and objective.section == "dens":
        config |= translate(config)
        if distutils.is_master():
            notice = {"optim": {"dens": config["optim"]["dens"]}}
            notice = yaml.safe_dump(notice, sort_keys=False)
            logging.warning(f"DeNS settings in an older form were read as\n{notice}")
    _check_objective(config, trainer)
    return _with_floats(config)


def _with_floats(config: dict[str, Any]) -> dict[str, Any]:
    optim = config.get("optim")
    return {**config, "optim": as_floats(optim)} if optim else config


def _common_checks(config: Mapping[str, Any], trainer: type) -> list[Callable[[], object]]:
    """List the checks that a trainer of fairchem's or a subclass of one needs."""
    if config.get("inference_only") or not issubclass(trainer, OCPTrainer):
        return []
    evaluation = config.get("evaluation_metrics") or {}
    return [
        lambda: check_optim(config.get("optim") or {}, trainer),
        lambda: check_names(config),
        lambda: check_primary_metric(evaluation),
        lambda: _check_plateau(config),
    ]


def _check_plateau(config: Mapping[str, Any]) -> None:
    optim, dataset = config.get("optim") or {}, config.get("dataset")
    validates = not isinstance(dataset, Mapping) or "src" in (dataset.get("val") or {})
    if optim.get("scheduler") == "ReduceLROnPlateau" and not validates:
        raise ConfigError(
            "scheduler = ReduceLROnPlateau needs validation data, got no dataset.val.src "
            "(optim.scheduler)"
        )


def _check_objective(config: Mapping[str, Any], trainer: type) -> None:
    optim, model, dataset = (config.get(name) or {} for name in ("optim", "model", "dataset"))
    if not isinstance(dataset, Mapping):
        dataset = {}  # an older form, without the keys of dens
    splits = {name: split for name, split in dataset.items() if isinstance(split, Mapping)}
    run_all(
        lambda: parse_on_bad(splits),
        lambda: refuse_ignored(config, trainer.objective_class.section),
        lambda: trainer.parse_objective(optim),
        lambda: parse_monitor(optim),
        lambda: take_pretrained(model),
        *(partial(check, config) for check in trainer.config_checks),
        # a model that is only used keeps what its checkpoint says
        lambda: config.get("inference_only") or check_keys(config, trainer),
        lambda: check_shared_graphs(config),
        *_common_checks(config, trainer),
    )

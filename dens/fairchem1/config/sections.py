"""Check the keys of all sections of a training config, and that numbers are no strings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.trainers import OCPTrainer
from pydantic import BaseModel

from dens.fairchem1.config import schema
from dens.fairchem1.config.kinds import make_schema, signature_schema
from dens.fairchem1.config.read import SPLITS
from dens.fairchem1.config.rules import find_class, find_registered, run_all
from dens.fairchem1.train.optimizer import check_optimizer, try_optimizer
from dens.settings import ConfigError, parse_settings

_NEEDED = ("num_workers", "lr_initial", "max_epochs")
_SCHEDULE = ("scheduler", "scheduler_params")  # needed by the trainers of EquiformerV2
# path in the config, settings, their schema, whether unknown keys without near miss are accepted
_Section = tuple[str, Any, type[BaseModel], bool]


def check_types(config: Mapping[str, Any]) -> None:
    """Refuse sections that are no mapping, and losses that are no list.

    Raises:
        ConfigError: one line for each section.
    """
    wrong = [
        f"{where} must be a mapping, got {settings!r} ({where})"
        for where, settings, _, _ in _list_sections(config, lenient=True)
        if not isinstance(settings, Mapping | None)
    ]
    losses = config.get("loss_functions")
    if losses and not isinstance(losses, list):
        wrong.append(f"loss_functions must be a list, got {losses!r} (loss_functions)")
    if wrong:
        raise ConfigError("\n".join(wrong))


def check_keys(config: Mapping[str, Any], trainer: type) -> None:
    """Refuse unknown keys in any section, and strings where numbers belong.

    A trainer that is not of dens may read keys which cannot be known here, and so may a data set,
    logger or model of the user's own (a model: where it takes ``**kwargs``). There an unknown key
    is accepted, unless it is a near miss of a known one.

    Args:
        config: in the current form, of sound types.
        trainer: the class that it names.

    Raises:
        ConfigError: one line for each mistake.
    """
    lenient = _reads_more(trainer)
    own = {"task.relax_opt": getattr(trainer, "relax_schema", schema.RELAX_OPT)}
    run_all(
        *(
            partial(
                parse_settings, own.get(where, known), settings or {}, where, lenient=accepts_others
            )
            for where, settings, known, accepts_others in _list_sections(config, lenient)
        )
    )


def _reads_more(trainer: type) -> bool:
    return not (schema.is_known_class(trainer) and hasattr(trainer, "objective_class"))


def check_optim(optim: Mapping[str, Any], trainer: type) -> None:
    """Refuse an ``optim`` section that a trainer of fairchem's would not take.

    Args:
        optim: the section, in the current form.
        trainer: the class that the config names; other kinds of trainers read what they like.

    Raises:
        ConfigError: one line for each mistake.
    """
    if not issubclass(trainer, OCPTrainer):
        return
    lenient = _reads_more(trainer)
    sections = list(_list_optim(optim, lenient))
    run_all(
        *(partial(parse_settings, k, v or {}, w, lenient=lenient) for w, v, k, _ in sections),
        lambda: check_optimizer(optim, trainer),
    )
    if not _missing(optim, trainer):
        try_optimizer(optim, trainer)


def check_needed(config: Mapping[str, Any]) -> None:
    """Refuse a config whose ``optim`` lacks what trainers of fairchem need.

    Raises:
        ConfigError: one line for each key.
    """
    trainer = find_class("trainer", config.get("trainer", "ocp"), "trainer")
    if missing := _missing(config.get("optim") or {}, trainer):
        raise ConfigError("\n".join(f"optim.{name} is missing (optim.{name})" for name in missing))


def _missing(optim: Mapping[str, Any], trainer: type) -> list[str]:
    if not issubclass(trainer, OCPTrainer):
        return []
    in_epochs = issubclass(trainer, EquiformerV2ForcesTrainer)
    return [name for name in (*_NEEDED, *_SCHEDULE * in_epochs) if name not in optim]


def _list_sections(config: Mapping[str, Any], lenient: bool) -> Iterator[_Section]:
    yield "", config, schema.TOP, lenient
    yield "task", config.get("task"), schema.TASK, lenient
    yield "task.relax_opt", _get(config, "task", "relax_opt"), schema.RELAX_OPT, lenient
    yield "evaluation_metrics", config.get("evaluation_metrics"), schema.METRICS, lenient
    yield "outputs", config.get("outputs"), schema.ANY, True
    for name, output in _items(config.get("outputs")):
        yield f"outputs.{name}", output, schema.OUTPUT, lenient
        for part, settings in _items(_get(output, "decomposition")):
            yield f"outputs.{name}.decomposition.{part}", settings, schema.OUTPUT, lenient
    losses = config.get("loss_functions")
    for term in losses if isinstance(losses, list) else []:
        for name, settings in _items(term):
            yield f"loss_functions.{name}", settings, schema.LOSS, lenient
    if isinstance(logger := config.get("logger"), Mapping):
        accepts_others = lenient or _is_foreign("logger", logger.get("name"))
        yield "logger", logger, schema.LOGGER, accepts_others
    if _get(config, "slurm", "folder") is None:  # else submitit has rewritten it
        yield "slurm", config.get("slurm"), schema.SLURM, True  # sbatch has many more options
    yield from _list_optim(config.get("optim"), lenient)
    yield from _list_model(config.get("model"), lenient)
    yield from _list_dataset(config.get("dataset"), lenient)


def _list_optim(optim: Any, lenient: bool) -> Iterator[_Section]:
    optimizer = getattr(torch.optim, str(_get(optim, "optimizer") or "AdamW"), None)
    scheduler = getattr(torch.optim.lr_scheduler, str(_get(optim, "scheduler")), None)
    arguments = (signature_schema(scheduler, without="optimizer"),) if scheduler else ()
    # trainers other than EquiformerV2's pass `optim` itself on to the scheduler
    known = make_schema(bases=(schema.OPTIM, *(arguments if lenient else ())))
    yield "optim", optim, known, lenient
    known = make_schema(bases=(schema.SCHEDULER, *arguments))
    yield "optim.scheduler_params", _get(optim, "scheduler_params"), known, lenient
    if optimizer is not None:
        known = signature_schema(optimizer, without="params lr")
        yield "optim.optimizer_params", _get(optim, "optimizer_params"), known, lenient


def _list_model(model: Any, lenient: bool) -> Iterator[_Section]:
    backbone = _get(model, "backbone")
    yield from _list_class("model", model, "name", "" if lenient else "pretrained")
    yield from _list_class("model.backbone", backbone, "model")
    yield "model.heads", _get(model, "heads"), schema.ANY, True
    for name, head in _items(_get(model, "heads")):
        yield from _list_class(f"model.heads.{name}", head, "module")
    yield "model.finetune_config", _get(model, "finetune_config"), schema.FINETUNE, False


def _list_class(where: str, settings: Any, key: str, more: str = "") -> Iterator[_Section]:
    """List a section that is passed on to the model class which it names under ``key``."""
    known, open_ended = schema.ANY, True
    if model_class := find_registered(
        "model", _get(settings, key)
    ):  # else it is refused where it is needed
        known, open_ended = schema.model_schema(model_class, f"{key} {more}")
    yield where, settings, known, open_ended


def _list_dataset(dataset: Any, lenient: bool) -> Iterator[_Section]:
    if isinstance(dataset, list):  # the older form: train, val, test
        dataset = dict(zip(SPLITS, dataset, strict=False))
    yield "dataset", dataset, schema.SPLITS, lenient
    train_format = _get(dataset, "train", "format")
    for name, split in _items(dataset):
        accepts_others = lenient or _is_foreign("dataset", _get(split, "format") or train_format)
        yield f"dataset.{name}", split, schema.SPLIT, accepts_others
        for own in SPLITS[:3]:
            where = f"{own}_split_settings"
            yield f"dataset.{name}.{where}", _get(split, where), schema.SPLIT, accepts_others
        transforms = _get(split, "transforms")
        yield f"dataset.{name}.transforms", transforms, schema.TRANSFORMS, accepts_others
        for kind, (known, known_of_fit) in schema.SCALES.items():
            for target, settings in _items(_get(transforms, kind)):
                where = f"dataset.{name}.transforms.{kind}.{target}"
                if target == "fit":
                    for name_, values in _items(_get(settings, "targets")):
                        yield f"{where}.targets.{name_}", values, schema.FITTED, lenient
                if target != "file":
                    yield where, settings, known_of_fit if target == "fit" else known, lenient


def _get(settings: Any, *path: str) -> Any:
    """Look up a path of keys; None where there is no such key or no mapping."""
    for key in path:
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def _items(settings: Any) -> Iterator[tuple[str, Any]]:
    return iter(settings.items() if isinstance(settings, Mapping) else ())


def _is_foreign(kind: str, name: Any) -> bool:
    """Tell whether a config names a data set or logger that is neither fairchem's nor ours."""
    found = None if name is None else find_registered(kind, name)
    return found is not None and not schema.is_known_class(found)

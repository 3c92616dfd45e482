"""Try the optimizer and the schedule of a config on one number, before anything is built.

Names are checked here; what their arguments may be, PyTorch and fairchem say themselves.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.models.equiformer_v2.trainers.lr_scheduler import LRScheduler as EpochScheduler
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from fairchem.core.modules.scheduler import LRScheduler

from dens import transfer
from dens.settings import ConfigError, unknown_value

_STEPS = 1_000_000  # of an epoch, so that no share of one is rounded to zero
_LAMBDAS = {  # keys that the schedules of EquiformerV2 need
    "cosine": ("warmup_epochs", "warmup_factor", "lr_min_factor"),
    "multistep": ("warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate"),
}


def optimizer_names() -> list[str]:
    """List PyTorch's optimizers."""
    return _subclasses(torch.optim, torch.optim.Optimizer)


def scheduler_names() -> list[str]:
    """List PyTorch's learning-rate schedulers, and fairchem's name for none."""
    base = torch.optim.lr_scheduler.LRScheduler
    return [*_subclasses(torch.optim.lr_scheduler, base), "Null"]


def _subclasses(module: Any, base: type) -> list[str]:
    found = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    public = {name: cls for name, cls in found.items() if not name.startswith("_")}
    return sorted(name for name, cls in public.items() if issubclass(cls, base) and cls is not base)


def check_optimizer(optim: Mapping[str, Any], trainer: type) -> None:
    """Refuse an unknown optimizer or schedule in an ``optim`` section.

    Raises:
        ConfigError: one line for each, with the names that are known.
    """
    problems = []
    optimizer, scheduler = optim.get("optimizer", "AdamW"), optim.get("scheduler")
    if optimizer not in optimizer_names():
        problems.append(unknown_value(optimizer, "optim.optimizer", optimizer_names()))
    if "scheduler" in optim and scheduler not in scheduler_names():
        quotes = " (a constant rate is 'Null', in quotes)" * (scheduler is None)
        problems.append(unknown_value(scheduler, "optim.scheduler", scheduler_names(), quotes))
    if problems:
        raise ConfigError("\n".join(problems))
    params = optim.get("scheduler_params")
    if scheduler == "LambdaLR" and issubclass(trainer, EquiformerV2ForcesTrainer) and params:
        _check_lambda(params)


def try_optimizer(optim: Mapping[str, Any], trainer: type) -> None:
    """Take a step of the optimizer of an ``optim`` section, and make the schedule.

    Args:
        optim: the section, of sound types and with all that the trainer needs.
        trainer: the class that the config names.

    Raises:
        ConfigError: they refuse a setting, or lack one.
    """
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    name, params = optim.get("optimizer", "AdamW"), optim.get("optimizer_params") or {}
    if "lr" in params:
        key = "optim.optimizer_params.lr"
        raise ConfigError(f"the learning rate is optim.lr_initial, got another one ({key})")
    with _as_config_error(f"optim.optimizer = {name} with optim.optimizer_params"):
        optimizer = getattr(torch.optim, name)([parameter], lr=optim["lr_initial"], **params)
        optimizer.step()
    name = optim.get("scheduler")
    if not issubclass(trainer, EquiformerV2ForcesTrainer):
        if name is not None:
            with _as_config_error(f"optim.scheduler = {name}"):
                LRScheduler(optimizer, dict(optim))
        return
    params = copy.deepcopy(dict(as_floats(optim)["scheduler_params"]))
    params |= {"epochs": optim["max_epochs"], "lr": optim["lr_initial"]}  # as the trainer does
    for key in params:
        if "epochs" in key:
            params[key] = _in_steps(params[key])
    with _as_config_error(f"optim.scheduler = {name} with optim.scheduler_params"):
        EpochScheduler(optimizer, {**optim, "scheduler_params": params})


def _in_steps(epochs: Any) -> Any:
    if isinstance(epochs, list):
        return [_in_steps(value) for value in epochs]
    return int(epochs * _STEPS) if isinstance(epochs, int | float) else epochs


def _check_lambda(params: Mapping[str, Any]) -> None:
    where, kind = "optim.scheduler_params", params.get("lambda_type")
    if kind not in _LAMBDAS:
        raise ConfigError(unknown_value(kind, f"{where}.lambda_type", _LAMBDAS))
    missing = [key for key in _LAMBDAS[kind] if params.get(key) is None]
    if missing:
        lines = (f"{key} is missing, which a {kind} schedule needs" for key in missing)
        raise ConfigError(
            "\n".join(f"{line} ({where}.{key})" for line, key in zip(lines, missing, strict=True))
        )


@contextmanager
def _as_config_error(what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # PyTorch raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what} does not work: {reason}") from error


def as_floats(optim: Mapping[str, Any]) -> dict[str, Any]:
    """Write the factors of a schedule as floats: fairchem takes no integer there, such as 1."""
    params = optim.get("scheduler_params")
    if not isinstance(params, Mapping):
        return dict(optim)
    factors = ("warmup_factor", "lr_min_factor", "decay_rate")
    floats = {key: float(params[key]) for key in factors if type(params.get(key)) is int}
    return {**optim, "scheduler_params": {**params, **floats}} if floats else dict(optim)


class GroupedAverage(ExponentialMovingAverage):
    """fairchem's moving average of parameters, updated in a few kernels instead of two for each."""

    def update(self, parameters: Iterable[torch.nn.Parameter] | None = None) -> None:
        parameters, share = self._get_parameters(parameters), 1.0 - self.decay
        with torch.no_grad():
            steps = torch._foreach_sub(parameters, self.shadow_params)
            torch._foreach_add_(self.shadow_params, steps, alpha=share)


class EpochTrainer(EquiformerV2ForcesTrainer):
    """EquiformerV2's trainer, which refuses a warm-up of less than a step.

    Raises:
        ConfigError: names ``warmup_epochs``.
    """

    def load_extras(self) -> None:
        steps = 0 if self.train_loader is None else len(self.train_loader)
        params = self.config["optim"]["scheduler_params"]
        if steps and "warmup_epochs" in params and params["warmup_epochs"] * steps < 1:
            raise ConfigError(
                f"warmup_epochs must be at least one step, and an epoch has {steps}: got "
                f"{params['warmup_epochs']} (optim.scheduler_params.warmup_epochs)"
            )
        super().load_extras()
        if self.ema and not transfer.is_host(self.device):
            self.ema = GroupedAverage(self.model.parameters(), self.ema_decay)

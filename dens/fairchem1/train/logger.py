"""Attach a :class:`dens.runs.log.RunLog` to fairchem's loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fairchem.core.common.logger import WandBLogger, WandBSingletonLogger
from fairchem.core.common.registry import registry

from dens.patching import replaced
from dens.runs.log import RunLog


def with_run_log(logger: Any, config: Mapping[str, Any]) -> RunLog:
    """Wrap a fairchem logger so that the run's log folder keeps what is logged.

    Args:
        logger: the fairchem logger.
        config: the trainer's config, with ``cmd.logs_dir``.
    """
    to_wandb = isinstance(logger, (WandBLogger, WandBSingletonLogger))
    return RunLog(logger, config["cmd"]["logs_dir"], config, to_wandb=to_wandb)


@contextmanager
def keep_logs() -> Iterator[None]:
    """Wrap every logger that fairchem makes in a RunLog, whatever the trainer."""
    stock = registry.get_logger_class

    def get_logger_class(name: str) -> Callable[[Mapping[str, Any]], RunLog]:
        return lambda config: with_run_log(stock(name)(config), config)

    with replaced(registry, get_logger_class=get_logger_class):
        yield

"""LBFGS for relaxations with fairchem-core 1.10 that never steps uphill, and its trajectories.

fairchem's LBFGS uses every pair of a step s and a change of force y in its model of the curvature,
even if y·s <= 0, which occurs between minima and with forces that are no exact gradient. The model
is then not positive definite, and steps go uphill. Here such pairs are ignored in each structure.

fairchem names a trajectory after the sid, which fails if the sid has a slash, and where structures
of one system share it. Here the file of a sid like ``a/run`` lies in a subfolder, and frames with
a number (fid) other than 0 have it in their name: ``a/run.traj``, ``a/run-1.traj``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.relaxation import ml_relaxation
from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from fairchem.core.trainers import ocp_trainer
from torch import Tensor
from torch_geometric.data import Batch

from dens.patching import replaced
from dens.settings import ConfigError


class _Positive(deque):
    """The 1 / (y·s) of LBFGS, (n_structures,) for each step; set to 0 to ignore a pair.

    It is ignored if <= 0, or infinite because the structure has stopped moving.
    """

    def append(self, rho: Tensor) -> None:
        super().append(torch.where((rho > 0) & rho.isfinite(), rho, 0))


class SafeLBFGS(LBFGS):
    """fairchem's LBFGS with a positive definite model of the curvature.

    Raises:
        ConfigError: trajectories without a file of their own each, see `trajectory_names`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rho = _Positive(maxlen=self.memory)
        if self.traj_dir:
            self.traj_names = trajectory_names(self.optimizable.batch)

    def run(self, *args: Any, **kwargs: Any) -> bool:
        if self.traj_dir:
            for name in self.traj_names:
                (self.traj_dir / name).parent.mkdir(parents=True, exist_ok=True)
        return super().run(*args, **kwargs)


def trajectory_names(batch: Batch) -> list[str]:
    """Name the trajectory of each structure, without suffix: by its sid, and its fid if not 0.

    Raises:
        ConfigError: two equal names, or one that lies outside the folder of the trajectories.
    """
    fids = getattr(batch, "fid", None)
    fids = [0] * len(batch.sid) if fids is None else fids
    sids, fids = (v.tolist() if isinstance(v, Tensor) else v for v in (batch.sid, fids))
    names = [frame_name(sid, fid) for sid, fid in zip(sids, fids, strict=True)]
    check_trajectory_names(names)
    return names


def frame_name(sid: int | str, fid: int) -> str:
    """Name a structure by its sid, and its fid if that is not 0."""
    return f"{sid}-{fid}" if fid else str(sid)


def check_trajectory_names(names: Sequence[str]) -> None:
    """Refuse equal names of trajectories, or one that lies outside their folder.

    Raises:
        ConfigError: names the first such structure.
    """
    counts = Counter(names)
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(
                f"the sid {name!r} is no file name, so its trajectory would not lie in the folder "
                "(task.relax_opt.traj_dir)"
            )
        if counts[name] > 1:
            raise ConfigError(
                f"two structures have the trajectory {name}: expected different sids or fids "
                "(task.relax_opt.traj_dir)"
            )


def _has_trajectories(batch: Batch, traj_dir: str | Path | None) -> bool:
    """Tell whether all structures of a batch were relaxed before."""
    return traj_dir is not None and all(
        Path(traj_dir, f"{name}.traj").exists() for name in trajectory_names(batch)
    )


@contextmanager
def safe_lbfgs() -> Iterator[None]:
    """Use :class:`SafeLBFGS` for fairchem's relaxations in a ``with`` block."""
    with (
        replaced(ml_relaxation, LBFGS=SafeLBFGS),
        replaced(ocp_trainer, check_traj_files=_has_trajectories),
    ):
        yield

"""Load a checkpoint as a relaxer of ASE's structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dens.fairchem1.morered.denoisers import load_denoiser
from dens.relax.atoms.relaxer import Relaxer
from dens.relax.config import RelaxSettings
from dens.settings import parse_settings


def load_relaxer(
    path: str | Path,
    *,
    time_path: str | Path | None = None,
    cpu: bool = False,
    raw: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Relaxer:
    """Load a checkpoint of MoreRed or DeNS as a relaxer with the surface of an ASE optimizer.

    >>> relaxer = dens.load_relaxer("checkpoint.pt")  # doctest: +SKIP
    >>> relaxer(atoms, trajectory="relaxation.traj").run(steps=60)  # doctest: +SKIP
    True

    Args:
        path: a checkpoint of MoreRed; or of DeNS, which is then told that the forces are zero.
        time_path: that of the time network, for a noise network that is told the level.
        cpu: run on the CPU even if there is a GPU.
        raw: use the weights as trained; by default their moving average, where there is one.
        seed: of the samplers' random numbers and of the random frames of edges.
        settings: see :class:`~dens.relax.config.RelaxSettings`, such as ``sampler="jt"``.

    Raises:
        ValueError: a file cannot be read or holds a model of another kind; a wrong setting.
    """
    parsed = parse_settings(RelaxSettings, settings, "")
    denoiser = load_denoiser(path, time_path=time_path, raw=raw, cpu=cpu, seed=seed)
    return Relaxer(denoiser, parsed, seed)

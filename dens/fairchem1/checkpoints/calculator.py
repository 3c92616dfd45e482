"""ASE calculator from a checkpoint of any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairchem.core.common.relaxation.ase_utils import OCPCalculator

from dens.fairchem1.checkpoints.export import export
from dens.fairchem1.checkpoints.layouts import read
from dens.fairchem1.checkpoints.model_sections import dens_section


class DeNSCalculator(OCPCalculator):
    """fairchem's ASE calculator on a model without noise head; see :func:`load_calculator`."""

    def __init__(self, path: str | Path, *, raw: bool, fast: bool | None, **kwargs: Any) -> None:
        content = export(read(path, raw), str(path))
        config = content["config"]
        # the classes of dens: their graph of molecules needs no torch-cluster
        config["model"] = dens_section(config["model"], force_encoding=False, fast=fast)
        config["dataset"] = {"train": config["dataset"]}
        self._content = content
        super().__init__(config_yml=config, checkpoint_path=path, **kwargs)

    def load_checkpoint(self, checkpoint_path: str, checkpoint: dict | None = None) -> None:
        """Load the content that was read already; ``checkpoint`` is not used."""
        super().load_checkpoint(checkpoint_path, self._content)


def load_calculator(
    path: str | Path,
    *,
    cpu: bool = False,
    fast: bool | None = None,
    seed: int | None = 0,
    raw: bool = False,
    **kwargs: Any,
) -> DeNSCalculator:
    """Make an ASE calculator from a checkpoint: energy in eV, forces in eV/Å, stress if trained.

    Args:
        path: a checkpoint of any layout that :mod:`dens.fairchem1.checkpoints.layouts` knows.
        cpu: run on the CPU even if there is a GPU.
        fast: take the faster path through the same model (docs/performance.md), with the same
            results up to rounding; by default where there is no GPU.
        seed: seeds the random frames of edges, on which the last digits of a result depend.
        raw: use the weights as trained; by default their moving average, where there is one.
        kwargs: passed on to fairchem's ``OCPCalculator``.

    Raises:
        ValueError: the checkpoint cannot be read, or its layout or version is unknown.
    """
    return DeNSCalculator(path, raw=raw, cpu=cpu, fast=fast, seed=seed, **kwargs)

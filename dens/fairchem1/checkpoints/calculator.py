"""ASE calculator from a checkpoint of any layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from fairchem.core.common.relaxation.ase_utils import OCPCalculator

from dens.fairchem1.backbones.families import family_of_section
from dens.fairchem1.backbones.sizes import EMBEDDING
from dens.fairchem1.checkpoints.export import export
from dens.fairchem1.checkpoints.layouts import read
from dens.fairchem1.checkpoints.model_sections import dens_section
from dens.fairchem1.checkpoints.state import trained_elements
from dens.graphs.model_input import check_atoms

_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx, yy, zz, yz, xz, xy


class DeNSCalculator(OCPCalculator):
    """fairchem's ASE calculator on a model without noise head; see :func:`load_calculator`."""

    def __init__(self, path: str | Path, *, raw: bool, fast: bool, **kwargs: Any) -> None:
        content = export(read(path, raw), str(path))
        config = content["config"]
        # the classes of dens: their graph of molecules needs no torch-cluster
        path_taken = {"fast": fast} if family_of_section(config["model"]).fast else {}
        config["model"] = dens_section(config["model"], force_encoding=False, **path_taken)
        config["dataset"] = {"train": config["dataset"]}
        self._content = content
        self._use_pbc = config["model"]["backbone"].get("use_pbc", True)
        self._n_numbers = len(content["state_dict"][EMBEDDING])
        self._elements = trained_elements(content)
        super().__init__(config_yml=config, checkpoint_path=path, **kwargs)
        if "energy" in self.implemented_properties:
            self.implemented_properties.append("free_energy")

    def load_checkpoint(self, checkpoint_path: str, checkpoint: dict | None = None) -> None:
        """Load the content that was read already; ``checkpoint`` is not used."""
        super().load_checkpoint(checkpoint_path, self._content)

    def calculate(self, atoms: Atoms, properties: Sequence[str], system_changes: Sequence) -> None:
        """Calculate all properties of the model.

        Args:
            atoms: the structure; a batch of fairchem's, as in its relaxations, is not checked.
            properties, system_changes: as ASE calls it; all properties are calculated anyway.

        Raises:
            ValueError: a structure for which the model has no answer; names the atom.
        """
        if not isinstance(atoms, Atoms):
            super().calculate(atoms, properties, system_changes)
            return
        check_atoms(atoms, self._n_numbers, self._elements, periodic=self._use_pbc)
        completed = atoms.copy()
        completed.cell = atoms.cell.complete() if atoms.pbc.any() else atoms.cell
        super().calculate(completed, properties, system_changes)
        self.atoms = atoms.copy()  # with which ASE compares the next structure
        if "energy" in self.results:
            self.results["free_energy"] = self.results["energy"]
        stress = self.results.pop("stress", None)
        if stress is not None and atoms.cell.rank == 3:
            self.results["stress"] = ((stress + stress.T) / 2)[_VOIGT]

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return a property as ASE's calculators do.

        Raises:
            PropertyNotImplementedError: the model does not predict it.
        """
        if name not in self.implemented_properties:
            outputs = ", ".join(self.implemented_properties)
            hint = ": relaxing a cell needs a model with a stress head" * (name == "stress")
            raise PropertyNotImplementedError(
                f"{name} is not among the outputs of this model, {outputs}{hint}"
            )
        return super().get_property(name, atoms, allow_calculation)


def load_calculator(
    path: str | Path,
    *,
    cpu: bool = False,
    fast: bool = True,
    seed: int | None = 0,
    raw: bool = False,
    **kwargs: Any,
) -> DeNSCalculator:
    """Make an ASE calculator from a checkpoint.

    It gives ``energy`` and an equal ``free_energy`` in eV, ``forces`` in eV/Å, and, from a model
    with a stress head, ``stress`` in eV/Å^3 with ASE's sign and order (xx, yy, zz, yz, xz, xy). A
    structure for which the model has no answer is a ValueError that names the atom: a dummy atom,
    an atomic number from ``max_num_elements`` on, an element that was not trained (if the file
    names the trained ones), atoms closer than 0.01 Å, a position that is not finite, a periodic
    cell without volume, no atoms.

    Args:
        path: a checkpoint of any layout that :mod:`dens.fairchem1.checkpoints.layouts` knows.
        cpu: run on the CPU even if there is a GPU.
        fast: take the faster path through an EquiformerV2 (docs/performance.md), with the same
            results up to rounding; other backbones have none.
        seed: seeds the random frames of edges, on which the last digits of a result depend.
        raw: use the weights as trained; by default their moving average, where there is one.
        kwargs: passed on to fairchem's ``OCPCalculator``.

    Raises:
        ValueError: the checkpoint cannot be read, or its layout or version is unknown.
    """
    return DeNSCalculator(path, raw=raw, cpu=cpu, fast=fast, seed=seed, **kwargs)

"""ASE calculator from a checkpoint of any layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols
from fairchem.core.common.relaxation.ase_utils import OCPCalculator

from dens.fairchem1.checkpoints.export import export
from dens.fairchem1.checkpoints.layouts import EMBEDDING, read
from dens.fairchem1.checkpoints.model_sections import dens_section
from dens.fairchem1.checkpoints.state import trained_elements
from dens.graphs.images import MIN_DISTANCE, Images

_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx, yy, zz, yz, xz, xy


class DeNSCalculator(OCPCalculator):
    """fairchem's ASE calculator on a model without noise head; see :func:`load_calculator`."""

    def __init__(self, path: str | Path, *, raw: bool, fast: bool | None, **kwargs: Any) -> None:
        content = export(read(path, raw), str(path))
        config = content["config"]
        # the classes of dens: their graph of molecules needs no torch-cluster
        config["model"] = dens_section(config["model"], force_encoding=False, fast=fast)
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


def check_atoms(
    atoms: Atoms, n_numbers: int, elements: Sequence[int] | None, *, periodic: bool = True
) -> None:
    """Refuse a structure for which a model has no answer.

    Args:
        atoms: the structure.
        n_numbers: the model's ``max_num_elements``: atomic numbers must be below it.
        elements: atomic numbers in the model's training data; None if they are not known.
        periodic: whether the model reads the cell.

    Raises:
        ValueError: names the first atom, by index and element.
    """
    if len(atoms) == 0:
        raise ValueError("expected a structure with atoms, got none")
    for i, number in enumerate(atoms.numbers):
        if number == 0:
            raise ValueError(f"{_name(atoms, i)} must be an element, got a dummy (Z = 0)")
        if number >= n_numbers:
            raise ValueError(
                f"{_name(atoms, i)} must have an atomic number below {n_numbers}, the model's "
                f"max_num_elements, got {number}"
            )
        if elements is not None and number not in elements:
            raise ValueError(
                f"{_name(atoms, i)} must be of an element in the training data of the model, "
                f"{', '.join(chemical_symbols[z] for z in elements)}"
            )
    finite = np.isfinite(atoms.positions).all(axis=1)
    if not finite.all():
        i = int(finite.argmin())
        raise ValueError(
            f"{_name(atoms, i)} must be at a finite position, got {atoms.positions[i].tolist()} Å"
        )
    _check_distances(atoms, atoms.pbc if periodic else np.zeros(3, dtype=bool))


def _check_distances(atoms: Atoms, pbc: np.ndarray) -> None:
    pos, cell = atoms.positions, np.array(atoms.cell)
    if pbc.any() and not np.isfinite(cell).all():
        raise ValueError(f"the cell must be finite, got {cell.tolist()} Å")
    images = Images(pos, cell, pbc, MIN_DISTANCE)  # refuses a periodic cell without volume
    pairs = images.all_pairs(np.arange(len(pos)))
    vectors = pos[pairs.source] + pairs.offsets @ images.lattice - pos[pairs.target]
    distances = np.linalg.norm(vectors, axis=1)
    itself = (pairs.source == pairs.target) & ~pairs.offsets.any(axis=1)
    for n in np.flatnonzero((distances < MIN_DISTANCE) & ~itself)[:1]:
        first, second = sorted((int(pairs.source[n]), int(pairs.target[n])))
        raise ValueError(
            f"{_name(atoms, first)} and {_name(atoms, second)} must be {MIN_DISTANCE} Å apart or "
            f"more, got {distances[n]:.2g} Å: there is no direction between them"
        )


def _name(atoms: Atoms, i: int) -> str:
    return f"atom {i} ({atoms.symbols[i]})"


def load_calculator(
    path: str | Path,
    *,
    cpu: bool = False,
    fast: bool | None = None,
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
        fast: take the faster path through the same model (docs/performance.md), with the same
            results up to rounding; by default where there is no GPU.
        seed: seeds the random frames of edges, on which the last digits of a result depend.
        raw: use the weights as trained; by default their moving average, where there is one.
        kwargs: passed on to fairchem's ``OCPCalculator``.

    Raises:
        ValueError: the checkpoint cannot be read, or its layout or version is unknown.
    """
    return DeNSCalculator(path, raw=raw, cpu=cpu, fast=fast, seed=seed, **kwargs)

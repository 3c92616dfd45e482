"""Statistics and checks of stress labels, for ``dens data stats`` and ``dens data check``."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dens.data.survey.forces import Moments
from dens.graphs.boundaries import MIN_VACUUM, vacuum_along

ASYMMETRY = 1e-3  # eV/Å^3, or that share of the largest component; a stress is symmetric
ACROSS_VACUUM = 2e-3  # eV/Å^3, 0.3 GPa: more than the noise of a calculation of a slab
MAX_STRAIN, MAX_STEP = 0.03, 0.1  # Å; steps between two frames over which energies are linear
MIN_PAIRS = 10
RECENT = 8  # structures of a system that are kept, to find a similar one
SYSTEMS = 2000  # systems whose structures are kept


class Frame(NamedTuple):
    """A periodic structure with all labels."""

    pos: np.ndarray  # (n_atoms, 3), Å
    cell: np.ndarray  # (3, 3), Å
    energy: float  # eV
    forces: np.ndarray  # (n_atoms, 3), eV/Å
    stress: np.ndarray  # (3, 3), eV/Å^3


def read_stress(fields: Mapping[str, Any]) -> np.ndarray | None:
    """Return the stress of a record, (3, 3) in eV/Å^3; None without one of nine numbers."""
    value = fields.get("stress")
    if not isinstance(value, Tensor) or value.numel() != 9:
        return None
    return value.view(3, 3).double().numpy()


def parts_of(stress: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Split a stress into its isotropic and anisotropic part, as fairchem's losses see them.

    Returns:
        :math:`\operatorname{tr} \sigma / \sqrt 3`; and (5,), components whose squares add up to
        those of the traceless symmetric part.
    """
    s = (stress + stress.T) / 2
    off = np.sqrt(2) * np.array([s[0, 2], s[0, 1], s[1, 2]])
    diagonal = np.array([2 * s[1, 1] - s[0, 0] - s[2, 2], np.sqrt(3) * (s[2, 2] - s[0, 0])])
    return float(np.trace(s) / np.sqrt(3)), np.concatenate([off, diagonal / np.sqrt(6)])


class StressMoments:
    """Moments of the isotropic and the anisotropic part of stresses."""

    def __init__(self) -> None:
        self._moments = {"stress_isotropic": Moments(), "stress_anisotropic": Moments()}
        self._count = 0

    def add(self, stress: np.ndarray | None) -> None:
        """Add a stress, (3, 3) in eV/Å^3, if there is one."""
        if stress is not None:
            self._count += 1
            for moments, part in zip(self._moments.values(), parts_of(stress), strict=True):
                moments.add(part)

    def result(self, structures: int) -> dict[str, dict[str, float]]:
        """Return the moments of each part, eV/Å^3; nothing unless all structures have a stress."""
        complete = self._count == structures
        return {name: m.result() for name, m in self._moments.items() if complete}


def find_stress_faults(
    stress: np.ndarray, pos: np.ndarray, cell: np.ndarray | None
) -> Iterator[str]:
    """Yield the kinds of faults of a stress: ``stress``, ``stress vacuum``.

    Args:
        stress: (3, 3), eV/Å^3.
        pos, cell: (n_atoms, 3) and (3, 3), Å; an open structure has no cell.
    """
    if not np.isfinite(stress).all():
        yield "stress"
        return
    if abs(stress - stress.T).max() > ASYMMETRY * max(1.0, abs(stress).max()):
        yield "stress"
    if cell is None:
        if stress.any():
            yield "stress vacuum"
        return
    for axis in range(3):
        if vacuum_along(pos, cell, axis) > MIN_VACUUM:
            normal = np.cross(*np.delete(cell, axis, axis=0))
            normal /= np.linalg.norm(normal)
            if np.linalg.norm(stress @ normal) > ACROSS_VACUUM:
                yield "stress vacuum"
                return


class StressScale:
    r"""Comparison of energy differences between similar structures with those from stress.

    .. math:: E_2 - E_1 + \tfrac12 \sum_i (f_{i,1} + f_{i,2}) \cdot u_i
        \approx \tfrac12 (V_1 \sigma_1 + V_2 \sigma_2) : \varepsilon

    with the strain between the two cells and the displacements u in the strained structure. A slope
    other than 1 means another sign (VASP's is the opposite of ASE's) or unit (kbar, GPa).
    """

    def __init__(self) -> None:
        self._recent: OrderedDict[bytes, deque[Frame]] = OrderedDict()
        self._pairs: list[tuple[float, float]] = []  # expected and given energy difference, eV

    def add(self, numbers: np.ndarray, frame: Frame) -> None:
        """Add the next structure, of atomic numbers (n_atoms,)."""
        if not all(np.isfinite(part).all() for part in frame):
            return
        key = numbers.tobytes()
        similar = self._recent.setdefault(key, deque(maxlen=RECENT))
        self._recent.move_to_end(key)
        if len(self._recent) > SYSTEMS:
            self._recent.popitem(last=False)
        found = [pair for other in similar if (pair := _compare(other, frame)) is not None]
        if found:
            self._pairs.append(min(found)[1:])
        similar.append(frame)

    def findings(self) -> list[str]:
        """Describe signs of another sign or unit than ASE's."""
        expected, given = np.array(self._pairs).reshape(-1, 2).T
        if len(given) < MIN_PAIRS or not expected.any() or not given.any():
            return []
        slope = float((expected * given).sum() / (expected**2).sum())
        if abs(np.corrcoef(expected, given)[0, 1]) < 0.9 or 0.67 < slope < 1.5:
            return []
        return [
            f"energies change {slope:.2g} times as much along strains as the stress says "
            f"({len(given)} pairs): the stress must be in eV/Å^3, positive where the cell would "
            "contract (1 kbar of VASP is -0.000624 eV/Å^3)"
        ]


def _compare(one: Frame, other: Frame) -> tuple[float, float, float] | None:
    """Return the size of the strain, and expected and given energy difference, eV; None if far."""
    deformation = np.linalg.solve(one.cell, other.cell)
    strain = (deformation + deformation.T) / 2 - np.eye(3)
    size = float(abs(deformation - np.eye(3)).max())
    if not 1e-5 < size < MAX_STRAIN:
        return None
    fractional = other.pos @ np.linalg.inv(other.cell) - one.pos @ np.linalg.inv(one.cell)
    steps = (fractional - fractional.round()) @ other.cell
    steps -= steps.mean(axis=0)
    if abs(steps).max() > MAX_STEP:
        return None
    virials = (abs(np.linalg.det(f.cell)) * f.stress for f in (one, other))
    expected = 0.5 * float((sum(virials) * strain).sum())
    work = 0.5 * float(((one.forces + other.forces) * steps).sum())
    return size, expected, other.energy - one.energy + work

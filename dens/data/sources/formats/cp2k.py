"""Read CP2K's trajectories: positions in ``PROJECT-pos-1.xyz``, forces in ``PROJECT-frc-1.xyz``.

Comment lines have the step and the energy: ``i = 5, time = 2.500, E = -17.1643447508``. Energies
are in Hartree, forces in Hartree/Bohr, positions in Å. The cell is read from ``PROJECT-1.cell``, or
from ``PROJECT-1.restart`` if the run keeps its cell; without either, structures are open.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import open_with_compression
from ase.units import Bohr, Hartree

from dens.data.sources.formats.xyz import XyzFrame, find_xyz_frames, read_xyz_frame

_COMMENT = re.compile(rb"\s*i\s*=\s*(\d+)\s*,.*\bE\s*=\s*(\S+)")
_NAME = re.compile(r"(?P<project>.*[-_.]|)(?P<part>pos|frc|vel)(?P<rest>[-_.].*)")
_CHANGING_CELL = re.compile(r"^\s*(ENSEMBLE\s+NP|RUN_TYPE\s+CELL_OPT)", re.MULTILINE)
_OPEN = re.compile(r"^\s*PERIODIC\s+NONE", re.MULTILINE)


class Cp2kFrame(NamedTuple):
    """A step: its energy (Hartree), the places of its positions and forces, and its cell.

    ``forces`` is None if the file of forces lacks the step; ``cell`` has nine numbers, Å, and is
    None for an open structure.
    """

    step: int
    energy: float
    positions: XyzFrame
    forces: XyzFrame | None = None
    cell: tuple[float, ...] | None = None


def cp2k_part(path: Path) -> str | None:
    """Tell which part of a trajectory a file of CP2K has, by its comment line and its name.

    Returns:
        pos, frc or vel, "" if its name does not tell it, None for other files.
    """
    try:
        with open_with_compression(str(path), "rb") as file:
            file.readline()
            if not _COMMENT.match(file.readline(1000)):
                return None
    except Exception:  # a damaged archive, which is reported when it is read
        return None
    name = _NAME.fullmatch(path.name)
    return name["part"] if name else ""


def positions_of(path: Path) -> Path:
    """Return the file of positions that belongs to a file of forces or velocities."""
    return _sibling(path, "pos")


def companions(path: Path) -> list[Path]:
    """List the files beside the positions that are read with them: of forces and of cells."""
    if _NAME.fullmatch(path.name) is None:
        return []
    return [file for file in (_sibling(path, "frc"), _cell_file(path)) if file and file.exists()]


def has_cell(path: str) -> bool:
    """Tell whether a file with the cell lies beside the positions."""
    return _cell_file(Path(path)) is not None


def _sibling(path: Path, part: str) -> Path:
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise ValueError(
            "expected a name like PROJECT-pos-1.xyz for positions of CP2K, whose forces are in "
            "PROJECT-frc-1.xyz"
        )
    return path.with_name(f"{name['project']}{part}{name['rest']}")


def _cell_file(path: Path) -> Path | None:
    name = _NAME.fullmatch(path.name)
    if name is None:
        return None
    stem = name["project"] + name["rest"].lstrip("-_.").partition(".")[0]
    files = (path.with_name(f"{stem}{suffix}") for suffix in (".cell", ".restart"))
    return next((file for file in files if file.exists()), None)


def find_cp2k_frames(path: str) -> Iterator[Cp2kFrame]:
    """Find the steps of a file of positions, with the forces and cells of the same steps.

    Raises:
        ValueError: no file of forces, or one with steps that have no positions; a step that is
            there twice, unless both files have the same steps in the same order; cells that cannot
            be read; after the steps before it, a frame that is cut off in either file.
    """
    partner = _sibling(Path(path), "frc")
    if not partner.exists():
        raise ValueError(f"expected the forces of its steps in {partner.name} beside it")
    cells = _read_cells(_cell_file(Path(path)))
    positions, cut = _collect(path, "")
    forces, cut_forces = _collect(str(partner), f"{partner.name}: ")
    _compare_steps([s.step for s in positions], [s.step for s in forces], partner.name, cut)
    by_step = {entry.step: entry for entry in forces}
    for i, entry in enumerate(positions):
        is_next = i < len(forces) and forces[i].step == entry.step
        found = forces[i] if is_next else by_step.get(entry.step)
        if found is None and cut_forces:
            break
        yield entry._replace(forces=found and found.positions, cell=cells(entry.step))
    if error := cut or cut_forces:
        raise error


def _collect(path: str, where: str) -> tuple[list[Cp2kFrame], ValueError | None]:
    """Find the steps of a file, up to its end or to the error returned, which begins `where`."""
    steps: list[Cp2kFrame] = []
    try:
        with open_with_compression(path, "rb") as file:
            for number, frame in enumerate(find_xyz_frames(path)):
                file.seek(frame.start)
                file.readline()
                comment = file.readline()
                match = _COMMENT.match(comment)
                if match is None:
                    raise ValueError(
                        f"frame {number}: expected a comment line like i = 5, E = -17.16, got "
                        f"{comment.strip()[:60].decode(errors='replace')!r}"
                    )
                energy = float(match[2].replace(b"D", b"E"))
                steps.append(Cp2kFrame(int(match[1]), energy, frame))
    except (OSError, EOFError, ValueError) as error:
        return steps, ValueError(f"{where}{error}")
    return steps, None


def _compare_steps(
    positions: list[int], forces: list[int], partner: str, cut: ValueError | None
) -> None:
    lost = sorted(set(forces) - set(positions))
    if lost and cut is None:
        raise ValueError(
            f"{partner} has forces of {len(lost)} steps without positions, the first: {lost[0]}"
        )
    repeated = [
        step for steps in (positions, forces) for step, n in Counter(steps).items() if n > 1
    ]
    common = min(len(positions), len(forces))
    if repeated and positions[:common] != forces[:common]:
        raise ValueError(f"step {repeated[0]} is there twice, and {partner} has other steps")


class _Cells:
    """Cells by step; one that never changes holds for all steps."""

    def __init__(self, cells: Mapping[int, tuple[float, ...]], name: str) -> None:
        self._cells, self._name = cells, name
        distinct = set(cells.values())
        self._only = distinct.pop() if len(distinct) == 1 else None

    def __call__(self, step: int) -> tuple[float, ...] | None:
        cell = self._only or self._cells.get(step)
        if cell is None and self._cells:
            raise ValueError(f"{self._name} has no cell for step {step}, and its cells change")
        return cell


def _read_cells(path: Path | None) -> _Cells:
    if path is None:
        return _Cells({}, "")
    if path.suffix == ".cell":
        try:
            rows = np.loadtxt(path, ndmin=2)
        except ValueError as error:
            raise ValueError(f"{path.name} cannot be read: {error}") from error
        if rows.shape[1] < 11:
            raise ValueError(
                f"{path.name}: expected step, time and nine numbers of the cell in a row, got "
                f"{rows.shape[1]}"
            )
        return _Cells({int(row[0]): tuple(row[2:11].tolist()) for row in rows}, path.name)
    text = path.read_text(errors="replace")
    if _OPEN.search(text):
        return _Cells({}, "")
    if _CHANGING_CELL.search(text):
        raise ValueError(
            f"its cell changes, as {path.name} says: expected the cells in "
            f"{path.with_suffix('.cell').name} beside it"
        )
    cell = ase.io.read(path, format="cp2k-restart").cell
    return _Cells({0: tuple(cell.array.ravel().tolist())} if cell.any() else {}, path.name)


def read_cp2k_frame(positions: BinaryIO, forces: BinaryIO, frame: Cp2kFrame) -> Atoms:
    """Read a step, in Å, eV and eV/Å.

    Args:
        positions, forces: the two files, opened for bytes.

    Raises:
        ValueError: a step without forces, or with other atoms there; a label that is no element.
    """
    if frame.forces is None:
        raise ValueError(f"step {frame.step} has no forces in the file of forces")
    atoms = read_xyz_frame(positions, frame.positions, comment="")
    labelled = read_xyz_frame(forces, frame.forces, comment="")
    if not np.array_equal(atoms.numbers, labelled.numbers):
        raise ValueError(
            f"expected the forces of its atoms in the same order, {atoms.symbols}, got those of "
            f"{labelled.symbols}"
        )
    if frame.cell is not None:
        atoms.set_cell(np.reshape(frame.cell, (3, 3)))
        atoms.pbc = True
    atoms.calc = SinglePointCalculator(
        atoms, energy=frame.energy * Hartree, forces=labelled.positions * (Hartree / Bohr)
    )
    return atoms

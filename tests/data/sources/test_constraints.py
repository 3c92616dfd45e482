"""Test which constraints of ASE make an atom fixed."""

from __future__ import annotations

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixScaled,
    Hookean,
)
from helpers.converted import convert
from helpers.labelled import label

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.constraints import fixed_atoms, has_other_constraints

XY, Z = (True, True, False), (False, False, True)


def make_atoms(constraints: list) -> Atoms:
    """Make four labelled atoms in an oblique cell."""
    cell = [[6, 0, 0], [1, 6, 0], [0, 2, 6]]
    atoms = Atoms("Cu4", [*np.diag([1.0, 2, 3]), [3, 3, 3]], cell=cell, pbc=True)
    atoms.set_constraint(constraints)
    return label(atoms, -1.0, np.ones((4, 3)))


# constraints, the atoms that are fixed, and whether others are held in part
CONSTRAINTS = {
    "none": ([], [], False),
    "FixAtoms": ([FixAtoms([0, 2])], [0, 2], False),
    "FixCartesian, all axes": ([FixCartesian([0, 1])], [0, 1], False),
    "FixCartesian, two axes": ([FixCartesian([0, 1], XY)], [], True),
    "FixCartesian, added up": ([FixCartesian([0, 1], XY), FixCartesian([1], Z)], [1], True),
    "FixCartesian, added to FixAtoms": ([FixCartesian([1], XY), FixAtoms([1])], [1], False),
    "FixScaled, all axes": ([FixScaled([3])], [3], False),
    "FixScaled, two axes": ([FixScaled([3], XY)], [], True),
    "FixScaled, added up": ([FixScaled([3], XY), FixScaled([3], Z)], [3], False),
    "FixedPlane": ([FixedPlane([0], [1, 1, 0])], [], True),
    "FixedLine": ([FixedLine([0], [1, 1, 0])], [], True),
    "line in a plane": ([FixedLine([0], [1, 1, 0]), FixedPlane([0], [0, 0, 2])], [], True),
    "line across a plane": ([FixedLine([0], [1, 1, 0]), FixedPlane([0], [3, 3, 1])], [0], False),
    "three planes": ([FixedPlane([2], d) for d in ([1, 0, 0], [1, 1, 0], [1, 1, 1])], [2], False),
    "two equal planes": ([FixedPlane([2], d) for d in ([1, 0, 0], [2, 0, 0])], [], True),
    "FixBondLengths": ([FixBondLengths([[0, 1]])], [], True),
    "FixBondLengths and FixAtoms": ([FixBondLengths([[0, 1]]), FixAtoms([0])], [0], True),
    "FixInternals": ([FixInternals(bonds=[[2.0, [0, 1]]])], [], True),
    "FixLinearTriatomic": ([FixLinearTriatomic([(0, 1, 2)])], [], True),
    "FixCom": ([FixCom()], [], True),
    "Hookean": ([Hookean(0, 1, 5.0, rt=1.0)], [], True),
}


@pytest.mark.parametrize("case", CONSTRAINTS)
def test_fixed_atoms(case):
    constraints, fixed, partly = CONSTRAINTS[case]
    atoms = make_atoms(constraints)
    assert np.flatnonzero(fixed_atoms(atoms)).tolist() == fixed
    assert has_other_constraints(atoms) == partly


@pytest.mark.parametrize("name", ["a.traj", "a.db", "a.json"])
@pytest.mark.parametrize("case", ["FixCartesian, all axes", "FixCartesian, added up"])
def test_files_keep_them(tmp_path, name, case):
    constraints, fixed, partly = CONSTRAINTS[case]
    atoms = make_atoms(constraints)
    ase.io.write(tmp_path / name, atoms)
    (record,), output = convert(tmp_path / "out", tmp_path / name)
    assert record.fixed.nonzero().flatten().tolist() == fixed
    told = "1 structures with constraints that hold atoms in part, which do not count here"
    assert (told in output) == partly

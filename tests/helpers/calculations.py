"""Write a folder of calculations as a newcomer has it: VASP runs, extended XYZ, a database."""

from __future__ import annotations

from pathlib import Path

import ase.db
import ase.io
from ase import Atoms

from helpers.labelled import slabs
from helpers.vasp import write_steps_outcar, write_steps_xml

# structures that can be converted, by the file in which they are
GOOD = {"fine": 3, "unconverged": 1, "other": 2, "killed": 1, "slabs.extxyz": 3, "slabs.db": 2}


def write_calculations(folder: Path) -> None:
    """Write VASP runs (fine, unconverged, killed, empty), an extended XYZ file and a database."""
    write_steps_xml(folder / "fine" / "vasprun.xml.gz", [3, 4, 5], 10)
    write_steps_xml(folder / "unconverged" / "vasprun.xml", [3, 10], 10)
    write_steps_outcar(folder / "other" / "OUTCAR", [3, 3], 10)
    write_steps_xml(folder / "killed" / "vasprun.xml", [3, 3], 10, cut=True)
    (folder / "empty").mkdir()
    (folder / "empty" / "OUTCAR").touch()
    write_own_keys(folder / "slabs.extxyz")
    with (folder / "slabs.extxyz").open("a") as file:  # without labels
        file.write("2\nProperties=species:S:1:pos:R:3\nH 0 0 0\nH 0 0 0.7\n")
    with ase.db.connect(folder / "slabs.db") as database:
        for frame in slabs(2, seed=1):
            database.write(frame)


def write_own_keys(path: Path) -> None:
    """Write three slabs with their labels under REF_energy and REF_forces, and a wrong energy."""
    frames = []
    for frame in slabs(3):
        results = frame.calc.results
        own = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        own.info.update(REF_energy=results["energy"], energy=0.0)
        own.arrays["REF_forces"] = results["forces"]
        frames.append(own)
    ase.io.write(path, frames)

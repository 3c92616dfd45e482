"""Make labelled structures and source files for the tests of the data commands."""

from __future__ import annotations

import lzma
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

# eV per atom; `slabs` adds them up, so that its energies look like DFT totals
REFERENCES = {"Cu": -3.5, "O": -7.25, "Au": -3.0}


def slabs(n: int, seed: int = 0, metal: str = "Cu", oxygens: int = 1, **info) -> list[Atoms]:
    """Make frames of a slab with tags and three fixed atoms, partly outside their cell."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        atoms = fcc111(metal, (1, 3, 3), vacuum=5.0)
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
        atoms.set_tags(np.where(atoms.get_tags() == 1, 1, 0))
        atoms += Atoms(
            "O" * oxygens, [(0.5, 2.0 * i, 11.5) for i in range(oxygens)], tags=[2] * oxygens
        )
        atoms.pbc = True
        atoms.info = dict(info)
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        energy = sum(REFERENCES[symbol] for symbol in atoms.symbols) + rng.normal()
        frames.append(label(atoms, energy, rng.normal(size=(len(atoms), 3))))
    return frames


def molecules(n: int, seed: int = 0) -> list[Atoms]:
    """Make frames of ethanol without a box, with energies of a few eV."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        atoms = molecule("CH3CH2OH")
        atoms.positions += rng.normal(scale=0.03, size=(9, 3))
        frames.append(label(atoms, rng.normal(), rng.normal(size=(9, 3))))
    return frames


def label(atoms: Atoms, energy: float, forces: np.ndarray) -> Atoms:
    """Label a structure: energy in eV, forces (n_atoms, 3) in eV/Å."""
    atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces)
    return atoms


def write_traj(path: Path, n: int = 5, **kwargs) -> list[Atoms]:
    """Write a trajectory of `slabs`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = slabs(n, **kwargs)
    ase.io.write(path, frames)
    return frames


def write_oc20(
    folder: Path, number: int, frames: list[Atoms], lines: list[str], packed: bool = False
) -> None:
    """Write a pair of files like OC20's download."""
    folder.mkdir(parents=True, exist_ok=True)
    structures, text = folder / f"{number}.extxyz", folder / f"{number}.txt"
    ase.io.write(structures, frames, format="extxyz")
    text.write_text("".join(f"{line}\n" for line in lines))
    if packed:
        for path in (structures, text):
            path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes()))
            path.unlink()


def write_vasprun(path: Path) -> None:
    """Write a vasprun.xml with one step: Cu (fixed) and O, -7.45 eV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_VASPRUN)


def write_outcar(path: Path) -> None:
    """Write an OUTCAR with the step of `write_vasprun`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_OUTCAR)


_ENERGY = (
    '<energy><i name="e_fr_energy">-7.5</i><i name="e_wo_entrp">-7.4</i>'
    '<i name="e_0_energy">-7.45</i></energy>'
)
_CELL = '<crystal><varray name="basis"><v>4 0 0</v><v>0 4 0</v><v>0 0 9</v></varray></crystal>'
_VASPRUN = f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
<kpoints><varray name="kpointlist"><v>0 0 0</v></varray>
<varray name="weights"><v>1</v></varray></kpoints>
<atominfo><array name="atoms"><set>
<rc><c>Cu</c><c>1</c></rc><rc><c>O</c><c>2</c></rc>
</set></array></atominfo>
<structure name="initialpos">{_CELL}
<varray name="positions"><v>0 0 0</v><v>0 0 0.2</v></varray>
<varray name="selective"><v>F F F</v><v>T T T</v></varray>
</structure>
<calculation>
<scstep>{_ENERGY}</scstep>
<structure>{_CELL}<varray name="positions"><v>0 0 0</v><v>0 0 0.21</v></varray></structure>
<varray name="forces"><v>0.1 0 -0.5</v><v>-0.1 0 0.5</v></varray>
{_ENERGY}
</calculation>
</modeling>
"""
_OUTCAR = """ POTCAR:    PAW_PBE Cu 22Jun2005
 POTCAR:    PAW_PBE O 08Apr2002
 POTCAR:    PAW_PBE Cu 22Jun2005
 POTCAR:    PAW_PBE O 08Apr2002
   ions per type =               1   1
   k-points           NKPTS =      1   k-points in BZ     NKDIM = 1   number of bands    NBANDS= 1
 k-points in reciprocal lattice and weights: x
   0.00000000  0.00000000  0.00000000       1.000
   ISPIN  =      1    spin polarized calculation?
--------------------------------------- Iteration      1(   1)  ---------------------------
 E-fermi :  -1.0     XC(G=0):  -1.0     alpha+bet : -1.0
      direct lattice vectors                 reciprocal lattice vectors
     4.000000000  0.000000000  0.000000000     0.25  0.0  0.0
     0.000000000  4.000000000  0.000000000     0.0  0.25  0.0
     0.000000000  0.000000000  9.000000000     0.0  0.0  0.11
 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.100000      0.000000     -0.500000
      0.00000      0.00000      1.89000        -0.100000      0.000000      0.500000
 -----------------------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =        -7.500000 eV

  energy  without entropy=       -7.400000  energy(sigma->0) =       -7.450000
"""

"""Write the output of VASP for two hydrogen atoms, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ase.io.formats import open_with_compression

_SCSTEP = (
    '<scstep><energy><i name="e_fr_energy">{free}</i><i name="e_wo_entrp">{energy}</i>'
    '<i name="e_0_energy">{energy}</i></energy></scstep>'
)
_CELL = '<crystal><varray name="basis"><v>6 0 0</v><v>0 6 0</v><v>0 0 6</v></varray></crystal>'
_STRUCTURE = (
    f'<structure{{}}>{_CELL}<varray name="positions"><v>0 0 0</v><v>0 0 0.123</v></varray>{{}}'
    "</structure>"
)
_STEP = (
    '<calculation>{scsteps}{structure}<varray name="forces"><v>0 0 -0.2</v><v>0 0 0.2</v></varray>'
    '<varray name="stress"><v>10 0 0</v><v>0 20 0</v><v>0 0 30</v></varray>'
    '<energy><i name="e_fr_energy">{free}</i></energy></calculation>\n'
)
_ATOMS = "".join("<rc><c>H </c><c>1</c></rc>" for _ in range(2))
_XML = (
    '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n'
    '<kpoints><varray name="kpointlist"><v>0 0 0</v></varray></kpoints>\n'
    "<parameters>{nelm}</parameters>\n"
    f'<atominfo><array name="atoms"><set>{_ATOMS}</set></array></atominfo>\n'
)
_OUTCAR = """ vasp.5.4.4.18Apr17
 POTCAR:    PAW_PBE H 15Jun2001
 POTCAR:    PAW_PBE H 15Jun2001
   ions per type =               2
   number of dos      NEDOS =    301   number of ions     NIONS =      2
   ISPIN  =      1    spin polarized calculation?
{nelm}"""
_OUTCAR_STEP = """      direct lattice vectors                 reciprocal lattice vectors
  6.000000000 0.000000000 0.000000000     0.166666667 0.000000000 0.000000000
  0.000000000 6.000000000 0.000000000     0.000000000 0.166666667 0.000000000
  0.000000000 0.000000000 6.000000000     0.000000000 0.000000000 0.166666667

 POSITION                                       TOTAL-FORCE (eV/Angst)
 ---------------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.000000      0.000000      -0.200000
      0.00000      0.00000      0.74000         0.000000      0.000000      0.200000
 ---------------------------------------------------------------------------------------

  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =       {free} eV

  energy  without entropy=      {energy}  energy(sigma->0) =      {energy}

"""


def write_steps_xml(
    path: Path,
    counts: Sequence[int],
    nelm: int | None = None,
    selective: Sequence[str] = (),
    cut: bool = False,
) -> None:
    """Write a vasprun.xml.

    Args:
        counts: electronic iterations of each ionic step; step i has the energy -6 - i eV, its free
            energy is 0.25 eV below.
        nelm: the limit of iterations; None to leave it out.
        selective: selective dynamics of the two atoms, like "T F F".
        cut: leave out the end, and what follows the forces of the last step.
    """
    flags = "".join(f"<v>{line}</v>" for line in selective)
    flags = f'<varray name="selective">{flags}</varray>' if selective else ""
    text = _XML.format(nelm="" if nelm is None else f'<i type="int" name="NELM">{nelm}</i>')
    text += _STRUCTURE.format(' name="initialpos"', flags)
    for i, count in enumerate(counts):
        values = {"energy": -6.0 - i, "free": -6.25 - i}
        scsteps = _SCSTEP.format(**values) * count
        text += _STEP.format(scsteps=scsteps, structure=_STRUCTURE.format("", ""), **values)
    text += "</modeling>\n"
    _write(path, text[: text.rindex('<varray name="stress">')] if cut else text)


def write_steps_outcar(
    path: Path, counts: Sequence[int], nelm: int | None = None, reached: Sequence[int] = ()
) -> None:
    """Write an OUTCAR, see `write_steps_xml`.

    Args:
        reached: numbers of the ionic steps that say that EDIFF is reached.
    """
    text = _OUTCAR.format(
        nelm="" if nelm is None else f"   NELM   =    {nelm};   NELMIN=  2; NELMDL= -5\n"
    )
    for i, count in enumerate(counts):
        for iteration in range(1, count + 1):
            text += f"----------------- Iteration {i + 1:4d}({iteration:4d})  ---------------\n"
        if i in reached:
            text += "------------ aborting loop because EDIFF is reached ------------\n"
        text += _OUTCAR_STEP.format(energy=f"{-6.0 - i:.8f}", free=f"{-6.25 - i:.8f}")
    _write(path, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_with_compression(str(path), "wt") as file:
        file.write(text)

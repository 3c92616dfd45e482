"""Test that electronic steps that did not converge are not taken in silence from other codes.

ASE's readers decide what can be known: that of Quantum ESPRESSO gives such a step no energy, and
that of ORCA the energy NaN.
"""

from __future__ import annotations

import pytest
from helpers.converted import convert, refused

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)

_PW_START = """     Program PWSCF v.6.5 starts on  1Jan2020 at  0: 0: 0
     lattice parameter (alat)  =      10.0000  a.u.
     number of atoms/cell      =            2
     celldm(1)=  10.000000  celldm(2)=   0.000000  celldm(3)=   0.000000
     crystal axes: (cart. coord. in units of alat)
               a(1) = (   1.000000   0.000000   0.000000 )
               a(2) = (   0.000000   1.000000   0.000000 )
               a(3) = (   0.000000   0.000000   1.000000 )
     site n.     atom                  positions (alat units)
         1           H   tau(   1) = (   0.0000000   0.0000000   0.0000000  )
         2           H   tau(   2) = (   0.0000000   0.0000000   0.1400000  )
"""
_PW_POSITIONS = """
ATOMIC_POSITIONS (angstrom)
H        0.000000000   0.000000000   0.000000000
H        0.000000000   0.000000000   0.75{step}00000
"""
_PW_FORCES = """
     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force =     0.00000000    0.00000000   -0.01000000
     atom    2 type  1   force =     0.00000000    0.00000000    0.01000000

"""
_PW_ENERGY = "!    total energy              =      -2.3{step}000000 Ry\n"
_PW_NOT = """     total energy              =      -2.3{step}000000 Ry
     convergence NOT achieved after 100 iterations: stopping
"""
_ORCA_START = """
                                 *****************
                                 * O   R   C   A *
                                 *****************
"""
_ORCA_STEP = """
         *                GEOMETRY OPTIMIZATION CYCLE   {step}            *
ORCA SCF GRADIENT CALCULATION
Number of atoms                             ...      2
---------------------------------
CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  H      0.000000    0.000000    0.000000
  H      0.000000    0.000000    0.75{step}000

------------------
CARTESIAN GRADIENT
------------------

   1   H   :    0.000000000    0.000000000    0.010000000
   2   H   :    0.000000000    0.000000000   -0.010000000

Difference to translation invariance:
-------------------------   --------------------
FINAL SINGLE POINT ENERGY{note}     -1.16{step}000000000
-------------------------   --------------------
"""


def espresso(bad: bool) -> str:
    """Make the output of two steps of pw.x, the second of which converged or not."""
    second = _PW_NOT if bad else _PW_ENERGY
    steps = [_PW_START, _PW_ENERGY, _PW_FORCES, _PW_POSITIONS, second, _PW_FORCES]
    return "".join(
        part.replace("{step}", str(step))
        for step, part in zip((0, 0, 0, 1, 1, 1), steps, strict=True)
    )


def orca(bad: bool) -> str:
    """Make the output of two steps of ORCA, the second of which converged or not."""
    note = " (Wavefunction not fully converged!)" if bad else "    "
    first, second = _ORCA_STEP.format(step=1, note="    "), _ORCA_STEP.format(step=2, note=note)
    # its reader ends a step where the next one begins
    return (
        f"{_ORCA_START}{first}ORCA GEOMETRY RELAXATION STEP\n{second}"
        "THE OPTIMIZATION HAS CONVERGED\n****ORCA TERMINATED NORMALLY****\n"
    )


CODES = {
    "pw.out": (espresso, "expected energy and forces, got only forces"),
    "orca.out": (orca, "energy must be finite, got nan"),
}


@pytest.mark.parametrize("name", CODES)
def test_unconverged_steps_of_other_codes(tmp_path, name):
    make, message = CODES[name]
    path = tmp_path / name
    path.write_text(make(bad=False))
    records, _ = convert(tmp_path / "good", path)
    assert len(records) == 2
    path.write_text(make(bad=True))
    line = refused(tmp_path / "bad", path)
    assert line.startswith(f"{path}, frame 1: ")
    assert message in line
    records, output = convert(tmp_path / "skipped", path, "--on-bad", "skip")
    assert [record.fid for record in records] == [0]
    assert "1 bad frames left out: " in output

"""Test reading extended XYZ: text around frames, VEC lines, and labels under other names."""

from __future__ import annotations

import lzma

import ase.io
import numpy as np
import pytest
from helpers.converted import convert, refused
from helpers.labelled import molecules, slabs

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)

CELL = 'Lattice="4 0 0 0 5 0 0 0 6" '
COMMENT = "Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} "


def frame(energy: float = 1.0, more: str = CELL, symbol: str = "Cu", columns: str = "") -> str:
    """Return the text of a frame with two atoms."""
    comment = COMMENT.format(energy=energy) + more
    return f"2\n{comment}\n{symbol} 0 0 0 0.1 0 -0.5{columns}\nO 1 1 1 -0.1 0 0.5{columns}\n"


VECTORS = "VEC1 4 0 0\nVEC2 0 5 0\nVEC3 0 0 6\n"
# text, and the energies of its frames
READ = {
    "blank line between": (frame(1) + "\n" + frame(2) + " \t\n\n" + frame(3), [1, 2, 3]),
    "blank lines around": ("\n\n" + frame(1) + frame(2) + "\n\n\n", [1, 2]),
    "blanks in the first line": (frame(1) + frame(2).replace("2\n", "  2  \n", 1), [1, 2]),
    "Windows": ((frame(1) + "\n" + frame(2)).replace("\n", "\r\n"), [1, 2]),
    "byte order mark": ("\ufeff" + frame(1) + frame(2), [1, 2]),
    "no line end": ((frame(1) + frame(2)).rstrip(), [1, 2]),
    "VEC lines": ((frame(1, "") + VECTORS) * 2 + frame(2, ""), None),
    "VEC lines, periodic": (frame(1, 'pbc="T T T"') + VECTORS + "\n" + frame(2), [1, 2]),
    "VEC lines beside a Lattice": (frame(1) + VECTORS + frame(2), [1, 2]),
}


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz.xz"])
@pytest.mark.parametrize("case", READ)
def test_all_frames_are_read(tmp_path, case, name):
    text, energies = READ[case]
    raw = text.encode()
    (tmp_path / name).write_bytes(lzma.compress(raw) if name.endswith(".xz") else raw)
    if energies is None:
        assert "with periodic boundaries or without, got 2 with and 1 without" in refused(
            tmp_path / "out", tmp_path / name
        )
        return
    records, _ = convert(tmp_path / "out", tmp_path / name)
    assert [record.y for record in records] == energies
    for record in records:
        assert record.cell[0].diagonal().tolist() == [4, 5, 6]
        np.testing.assert_allclose(record.force[0], [0.1, 0, -0.5], rtol=1e-6)


REFUSED = {
    "text between": (
        frame(1) + "# second\n" + frame(2),
        ": line 5, frame 1: expected the number of atoms, got '# second'",
    ),
    "text at the end": (frame(1) + "\nend", ": line 6, frame 1: expected the number of atoms"),
    "number with a fraction": (frame(1) + frame(2).replace("2\n", "2.0\n", 1), ": line 5, frame 1"),
    "an atom too many": (frame(1).replace("2\n", "1\n", 1), ": line 4, frame 1: expected the num"),
    "an atom too few": (
        frame(1).replace("2\n", "3\n", 1) + frame(2),
        ": line 5, frame 0: expected atom 3 of 3, with its element and position, got '2'",
    ),
    "blank line among the atoms": (
        frame(1).replace("O 1", "\nO 1"),
        ": line 4, frame 0: expected atom 2 of 2, with its element and position, got an empty line",
    ),
    "cut off": (frame(1) + "2\n", ": frame 1 is cut off after"),
    "VEC lines in another order": (
        frame(1, "") + "VEC2 4 0 0\nVEC1 0 5 0\n",
        ", frame 0: expected VEC1, VEC2 with three numbers each",
    ),
    "label with a number": (frame(1) + frame(2, symbol="Cu1"), ", frame 1: 'Cu1' is no element"),
    "only blank lines": ("\n\n \n", ": expected structures, got none in its 4 bytes"),
    "nothing": ("", ": expected structures, got an empty file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_lines_that_belong_to_no_frame(tmp_path, case):
    text, message = REFUSED[case]
    (tmp_path / "a.xyz").write_text(text)
    assert refused(tmp_path / "out", tmp_path / "a.xyz").startswith(f"{tmp_path}/a.xyz{message}")


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.xyz").write_bytes(frame(1, CELL + "by=Müller").encode("latin-1"))
    records, _ = convert(tmp_path / "out", tmp_path / "a.xyz")
    assert [record.y for record in records] == [1]


@pytest.mark.parametrize(
    ("texts", "sids"),
    [
        (["001", "1", "1e2", "100.0"], ["001", "1", "1e2", "100.0"]),
        (['"0 1"', "T", "True", "1.50"], ["0 1", "T", "True", "1.50"]),
    ],
)
def test_group_keys_keep_their_text(tmp_path, texts, sids):
    text = "".join(frame(i, f"{CELL} mid={mid} last=1") for i, mid in enumerate(texts))
    (tmp_path / "a.xyz").write_text(text)
    options = ["--split", "by-system", "--fractions", "all=1", "--group-key", "mid"]
    records, _ = convert(tmp_path / "out", tmp_path / "a.xyz", *options, split="all")
    assert [record.sid for record in records] == sids


@pytest.mark.parametrize("mark", ["converged=F", "scf_converged=False", "is_converged=0"])
def test_marks_of_unconverged_frames(tmp_path, mark):
    (tmp_path / "a.xyz").write_text(frame(1) + frame(2, CELL + mark) + frame(3, CELL))
    records, output = convert(tmp_path / "out", tmp_path / "a.xyz")
    assert [record.y for record in records] == [1, 3]
    assert "1 structures, whose electronic steps did not converge, are left out" in output


@pytest.mark.parametrize(
    ("columns", "values", "fixed", "said"),
    [
        ("move_mask:L:1", " F", [1, 1], False),
        ("move_mask:L:3", " F F F", [1, 1], False),
        ("move_mask:L:3", " F T F", [0, 0], True),
    ],
)
def test_move_mask(tmp_path, columns, values, fixed, said):
    text = frame(1, columns=values).replace("forces:R:3", f"forces:R:3:{columns}")
    free = "Cu 2 2 2 0 0 0" + " T" * len(values.split())
    text = text.replace("2\n", "3\n", 1) + free + "\n"
    (tmp_path / "a.xyz").write_text(text)
    (record,), output = convert(tmp_path / "out", tmp_path / "a.xyz")
    assert record.fixed.tolist() == [*fixed, 0]
    assert ("1 structures with constraints that hold atoms in part" in output) == said


def write_renamed(path, energy="REF_energy", forces="REF_forces", n=2) -> list:
    """Write frames with labels under other names."""
    frames = slabs(n)
    for atoms in frames:
        results, atoms.calc = atoms.calc.results, None
        atoms.info[energy] = results["energy"]
        # a trajectory keeps no arrays of other names
        place = atoms.info if path.suffix == ".traj" else atoms.arrays
        place[forces] = results["forces"]
    ase.io.write(path, frames)
    return frames


@pytest.mark.parametrize(
    ("energy", "forces"),
    [("REF_energy", "REF_forces"), ("dft_energy", "dft_force"), ("TotEnergy", "force")],
)
@pytest.mark.parametrize("name", ["a.extxyz", "a.traj"])
def test_keys_of_labels(tmp_path, name, energy, forces):
    frames = write_renamed(tmp_path / name, energy, forces)
    hint = f"dens data convert takes other keys with --energy-key {energy} --forces-key {forces}"
    line = refused(tmp_path / "out", tmp_path / name)
    assert f"{tmp_path}/{name}, frame 0: expected energy and forces, got only" in line
    assert line.endswith(hint)
    keys = ["--energy-key", energy, "--forces-key", forces]
    records, _ = convert(tmp_path / "out", tmp_path / name, *keys)
    for atoms, record in zip(frames, records, strict=True):
        assert record.y == pytest.approx(atoms.info[energy])
        values = {**atoms.arrays, **atoms.info}[forces]
        np.testing.assert_allclose(record.force, values, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--energy-key", "E"], "frame 0: expected the key 'E' (--energy-key), got only "),
        (["--energy-key", "E"], "likely: REF_energy"),
        (["--energy-key", "REF_energy"], "with --forces-key REF_forces"),
        (["--forces-key", "REF_energy"], "REF_energy (--forces-key) must be (10, 3), got ()"),
        (["--energy-key", "REF_forces"], "REF_forces (--energy-key) must be one number, got (10"),
        (["--energy-key", "name"], "name (--energy-key) must be numbers, got 'slab'"),
        (["--stress-key", "virial"], "expected the key 'virial' (--stress-key), got only"),
        (["--energy", "free"], "expected a free energy (--energy free), got only "),
    ],
)
def test_wrong_keys(tmp_path, keys, message):
    frames = write_renamed(tmp_path / "b.xyz")
    for atoms in frames:
        atoms.info["name"] = "slab"
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    assert message in refused(tmp_path / "out", tmp_path / "a.xyz", *keys)


def test_several_energies_are_told(tmp_path):
    more = [f"{CELL} dft_energy={e} energy_weight=2 mp2_energy=1" for e in (-1.0, -2.0, 3.0)]
    (tmp_path / "a.xyz").write_text("".join(frame(i + 1, m) for i, m in enumerate(more)))
    records, output = convert(tmp_path / "out", tmp_path / "a.xyz")
    assert [record.y for record in records] == [1, 2, 3]
    # equal values are no choice
    assert (
        "energy was taken of structures that also have dft_energy (2), mp2_energy (2): "
        "--energy-key takes another"
    ) in output
    records, output = convert(tmp_path / "dft", tmp_path / "a.xyz", "--energy-key", "dft_energy")
    assert [record.y for record in records] == [-1, -2, 3]


STRESS = "0.1 0.04 0.05 0.04 0.2 0.06 0.05 0.06 0.3"
VIRIAL = " ".join(str(-120 * float(x)) for x in STRESS.split())  # of 4 * 5 * 6 Å^3


@pytest.mark.parametrize(
    ("key", "values", "options"),
    [
        ("stress", STRESS, []),
        ("dft_stress", STRESS, ["--stress-key", "dft_stress"]),
        ("REF_stress", "0.1 0.2 0.3 0.06 0.05 0.04", ["--stress-key", "REF_stress"]),
        ("virial", VIRIAL, ["--stress-key", "virial"]),
        ("dft_virial", VIRIAL, ["--stress-key", "dft_virial"]),
    ],
)
def test_stress_is_kept(tmp_path, key, values, options):
    text = frame(1, f'{CELL} {key}="{values}" charge=1 total_spin=2 dipole="0 0 1"') * 2
    (tmp_path / "a.xyz").write_text(text)
    records, output = convert(tmp_path / "out", tmp_path / "a.xyz", *options)
    for record in records:
        expected = np.array(STRESS.split(), dtype=float).reshape(1, 3, 3)
        np.testing.assert_allclose(record.stress, expected, rtol=1e-6)
        assert record.stress.shape == (1, 3, 3)
    assert "2 structures with stress, which is kept in eV/Å^3" in output
    assert (
        "not kept, with the number of structures: charge (2), dipole (2), total_spin (2)"
    ) in output


def test_units_of_the_stress(tmp_path):
    (tmp_path / "a.xyz").write_text(frame(1, f'{CELL} stress="{STRESS}"'))
    (record,), _ = convert(tmp_path / "out", tmp_path / "a.xyz", "--units", "Hartree-Bohr")
    expected = 0.1 * 27.211386 / 0.52917721**3
    assert record.stress[0, 0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_stress_that_is_not_finite(tmp_path):
    values = STRESS.replace("0.3", "nan")
    (tmp_path / "a.xyz").write_text(frame(1, f'{CELL} stress="{values}"'))
    message = "frame 0: structure sid=a fid=0: stress must be finite, got NaN"
    assert message in refused(tmp_path / "out", tmp_path / "a.xyz")


def test_open_molecules_keep_their_values(tmp_path):
    frames = molecules(3)
    ase.io.write(tmp_path / "a.xyz", frames, format="extxyz")
    records, output = convert(tmp_path / "out", tmp_path / "a.xyz")
    assert [r.y for r in records] == pytest.approx([a.calc.results["energy"] for a in frames])
    assert "kept" not in output

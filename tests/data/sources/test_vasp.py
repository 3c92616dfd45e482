"""Test reading VASP's output: unconverged steps, energies, names of files, folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.converted import convert, refused
from helpers.labelled import write_outcar, write_traj, write_vasprun
from helpers.vasp import write_steps_outcar, write_steps_xml

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)

# iterations of each step, NELM, steps that reached EDIFF in the OUTCAR, and steps that are kept
CONVERGENCE = {
    "middle": ([3, 10, 3], 10, (), [0, 2]),
    "last": ([3, 3, 10], 10, (), [0, 1]),
    "first two": ([10, 10, 3], 10, (), [2]),
    "default of NELM": ([59, 60, 60], None, (), [0]),
    "larger NELM": ([60, 99, 100], 100, (), [0, 1]),
}


@pytest.mark.parametrize("name", ["vasprun.xml", "vasprun.xml.gz", "OUTCAR", "OUTCAR.relax1.bz2"])
@pytest.mark.parametrize("case", CONVERGENCE)
def test_unconverged_steps_are_left_out(tmp_path, case, name):
    counts, nelm, reached, kept = CONVERGENCE[case]
    if "OUTCAR" in name:
        write_steps_outcar(tmp_path / name, counts, nelm, reached)
    else:
        write_steps_xml(tmp_path / name, counts, nelm)
    records, output = convert(tmp_path / "out", tmp_path / name)
    assert [record.fid for record in records] == kept
    assert [record.y for record in records] == pytest.approx([-6.0 - i for i in kept])
    n = len(counts) - len(kept)
    said = f"{n} structures, whose electronic steps did not converge, are "
    assert f"{said}left out: --keep-unconverged keeps them" in output
    records, output = convert(tmp_path / "all", tmp_path / name, "--keep-unconverged")
    assert len(records) == 3
    assert f"{said}kept" in output


def test_last_iteration_may_reach_the_criterion(tmp_path):
    write_steps_outcar(tmp_path / "OUTCAR", [10, 10, 4], 10, reached=(1, 2))
    records, _ = convert(tmp_path / "out", tmp_path / "OUTCAR")
    assert [record.fid for record in records] == [1, 2]


def test_unconverged_steps_are_not_fitted_to(tmp_path):
    write_steps_xml(tmp_path / "vasprun.xml", [3, 10, 3], 10)
    records, _ = convert(tmp_path / "out", tmp_path / "vasprun.xml", "--references", "fit")
    assert [record.y for record in records] == pytest.approx([1, -1])  # about -6 and -8


def test_all_steps_unconverged_is_an_error(tmp_path):
    write_steps_xml(tmp_path / "vasprun.xml", [10], 10)
    assert "all of its 1 frames were dropped" in refused(tmp_path / "out", tmp_path / "vasprun.xml")


@pytest.mark.parametrize("name", ["vasprun.xml", "OUTCAR"])
def test_choice_of_the_energy(tmp_path, name):
    write = write_steps_xml if name == "vasprun.xml" else write_steps_outcar
    write(tmp_path / name, [3, 3])
    records, output = convert(tmp_path / "sigma0", tmp_path / name)
    assert [record.y for record in records] == pytest.approx([-6, -7])
    assert "2 structures have a free energy that differs" in output
    records, output = convert(tmp_path / "free", tmp_path / name, "--energy", "free")
    assert [record.y for record in records] == pytest.approx([-6.25, -7.25])
    assert "free energy" not in output


def test_selective_dynamics(tmp_path):
    write_steps_xml(tmp_path / "vasprun.xml", [3], selective=["F F F", "T F F"])
    (record,), output = convert(tmp_path / "out", tmp_path / "vasprun.xml")
    assert record.fixed.tolist() == [1, 0]
    assert "1 structures with constraints that hold atoms in part" in output


NAMES = [
    "vasprun.xml.relax1",
    "vasprun.xml.static.gz",
    "vasprun_2.xml",
    "h2_vasprun.xml",
    "h2.vasprun.xml.bz2",
    "h2.xml",
    "OUTCAR.relax2.gz",
    "OUTCAR_3",
    "h2.OUTCAR",
    "h2-OUTCAR.2",
    "h2.log",
]


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(tmp_path, name, in_folder):
    is_xml = ".xml" in name
    (write_steps_xml if is_xml else write_steps_outcar)(tmp_path / "in" / name, [3, 4])
    (tmp_path / "in" / "OUTCAR.png").write_bytes(b"\x89PNG")
    path = tmp_path / "in" if in_folder else tmp_path / "in" / name
    records, output = convert(tmp_path / "out", path)
    assert [record.y for record in records] == pytest.approx([-6, -7])
    assert ("left out, since folders are searched for other kinds: 1 .png" in output) == in_folder


def write_cut(path: Path) -> None:
    write_steps_xml(path, [3, 3], cut=True)


def write_xml(path: Path) -> None:
    write_steps_xml(path, [3, 3, 3])


def write_out(path: Path) -> None:
    write_steps_outcar(path, [3, 3, 3])


# files of a folder, records by file, and what the output says
FOLDERS = {
    "whole": (
        {"vasprun.xml": write_xml, "OUTCAR": write_out},
        {"vasprun": 3},
        "left out, since another file has the same calculation: OUTCAR (as vasprun.xml)",
    ),
    "cut": (
        {"vasprun.xml": write_cut, "OUTCAR": write_out},
        {"OUTCAR": 3},
        "has the same calculation: vasprun.xml (cut off, as OUTCAR)",
    ),
    "cut and alone": ({"vasprun.xml": write_cut}, {"vasprun": 1}, "only its whole steps are taken"),
    "cut, and an OUTCAR that is shorter": (
        {"vasprun.xml": write_cut, "OUTCAR": lambda path: path.write_text("")},
        {"vasprun": 1},
        "OUTCAR (as vasprun.xml)",
    ),
    "two calculations": (
        {"vasprun.xml.relax1": write_xml, "OUTCAR.relax1": write_out, "OUTCAR.relax2": write_out},
        {"vasprun": 3, "OUTCAR": 3},
        "taken 1 vasp-xml, 1 vasp-out",
    ),
    "compressed twice": (
        {"vasprun.xml": write_xml, "vasprun.xml.gz": write_xml, "OUTCAR.gz": write_out},
        {"vasprun": 3},
        "OUTCAR.gz (as vasprun.xml), vasprun.xml.gz (as vasprun.xml)",
    ),
    "other names": (
        {"h2_vasprun.xml": write_xml, "h2.OUTCAR": write_out, "o2.OUTCAR": write_out},
        {"h2_vasprun": 3, "o2": 3},
        "h2.OUTCAR (as h2_vasprun.xml)",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(tmp_path, case):
    files, expected, message = FOLDERS[case]
    (tmp_path / "in").mkdir()
    for name, write in files.items():
        write(tmp_path / "in" / name)
    records, output = convert(tmp_path / "out", tmp_path / "in")
    sids = [record.sid for record in records]
    assert {sid: sids.count(sid) for sid in sids} == expected
    found = sorted(message.partition(": ")[2].split(", "))
    assert message in output or all(part in output for part in found)


def test_stress_is_kept_only_if_all_have_it(tmp_path):
    write_steps_xml(tmp_path / "a" / "vasprun.xml", [3])
    records, output = convert(tmp_path / "out", tmp_path / "a")
    assert records[0].stress.shape == (1, 3, 3)
    # kbar, with the other sign
    assert records[0].stress[0].diagonal().tolist() == pytest.approx(
        [-0.1 * n * 0.00624150907 for n in (10, 20, 30)], rel=1e-6
    )
    assert "1 structures with stress, which is kept in eV/Å^3" in output
    write_traj(tmp_path / "b" / "a.traj", 2)
    records, output = convert(tmp_path / "both", tmp_path / "a", tmp_path / "b")
    assert not any("stress" in record for record in records)
    assert "the stress of 1 structures is not kept, since 2 have none" in output


def test_helpers_agree_with_one_step(tmp_path):
    write_vasprun(tmp_path / "a" / "vasprun.xml")
    write_outcar(tmp_path / "b" / "OUTCAR")
    records, _ = convert(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert [record.y for record in records] == [-7.45, -7.45]

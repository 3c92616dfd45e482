"""Test ``python -m benchmarks.relaxation`` with denoisers that are known, on small molecules."""

import dens.fairchem1  # noqa: F401  # isort: skip  # before fairchem: it supplies what fairchem imports
import json

import numpy as np
import pytest
import torch
from ase.build import molecule
from helpers.denoisers import ExactDenoiser, SpringDenoiser

from benchmarks.relaxation import __main__ as program
from benchmarks.relaxation.baselines import run_baseline
from benchmarks.relaxation.molecules import make_starts, read_set
from benchmarks.relaxation.table import format_result, read_results
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import add_start, atoms_to_data
from dens.relax.atoms.conversion import Limits, to_structures

pytestmark = pytest.mark.slow

NAMES = ("H2O", "CH4", "NH3", "C2H6", "CH3OH", "CH3CH2OH")
WITHOUT_START = 3


@pytest.fixture(scope="module")
def molecules():
    return [molecule(name) for name in NAMES]


@pytest.fixture(scope="module")
def data(molecules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("molecules") / "test"
    with LmdbWriter(folder) as writer:
        for i, atoms in enumerate(molecules):
            record = atoms_to_data(atoms, sid=NAMES[i], fid=0, labels=False)
            moved = np.random.default_rng(i).normal(scale=0.05, size=(len(atoms), 3))
            start = atoms.positions + moved
            add_start(record, np.full_like(start, np.nan) if i == WITHOUT_START else start)
            writer.write(record)
    return folder


@pytest.fixture
def command(molecules, data, monkeypatch, tmp_path, capsys):
    """A function that runs the command with toy models, and returns what it prints."""
    true = to_structures(molecules, Limits(periodic=False))
    toys = {"exact.pt": ExactDenoiser(true), "springs.pt": SpringDenoiser(stiffness=0.02)}
    monkeypatch.setattr(program, "load_denoiser", lambda path, **_: toys[path.name])
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)  # for the process of the tests

    def run(*args, checkpoint=("exact.pt",), out=None):
        files = [str(tmp_path / name) for name in checkpoint]
        more = [] if out is None else ["--out", str(tmp_path / out)]
        program.main(["--data", str(data), "--checkpoint", *files, *map(str, args), *more])
        return capsys.readouterr()

    return run


def test_an_exact_model_scores_as_one(command, tmp_path):
    printed = command("--starts", "--name", "exact", out="exact.json")
    assert "5 structures; 1 have none: left out" in printed.err
    assert "| noise 0.3 Å | exact |" in printed.out
    result = json.loads((tmp_path / "exact.json").read_text())
    (run,) = result["runs"]
    assert run["run"].endswith("/exact.pt")
    assert list(run["starts"]) == ["0.1", "0.2", "0.3", "pos_start"]
    for start in run["starts"].values():
        row = start["all"]
        assert row["converged"] == row["same_molecule"] == 1.0
        assert row["after_median"] < 0.25 * row["before_median"]
        assert row["ms"] > 0
    assert run["starts"]["pos_start"]["all"]["n"] == 5
    assert run["rank_correlation"]["all starts"] > 0.8
    assert abs(run["time"]["100"]["mean"] - 100) < 25


def test_results_of_files_join_and_seeds_get_error_bars(command, tmp_path):
    command("--noise", "0.1", "--every", "2", checkpoint=["exact.pt", "springs.pt"], out="two.json")
    command(
        *("--noise", "0.1", "--every", "2", "--name", "other", "--damping", "0"), out="other.json"
    )
    joined = read_results([tmp_path / "two.json", tmp_path / "other.json"])
    table = format_result(joined)
    assert "Mean ± sd over seeds (denoising: 2)" in table
    (row,) = [line for line in table.splitlines() if line.startswith("| noise 0.1 Å | denoising")]
    assert row.count("±") >= 5
    (row,) = [line for line in table.splitlines() if line.startswith("| noise 0.1 Å | other")]
    assert "±" not in row
    command("--noise", "0.1", "--every", "3", out="less.json")
    for files, message in (
        (["two.json", "less.json"], "less.json is of another set: structures is"),
        (["two.json", "two.json"], "as another file does"),
        (["missing.json"], "is no result of benchmarks.relaxation"),
    ):
        with pytest.raises(ValueError, match=message):
            read_results([tmp_path / name for name in files])


def test_a_seed_may_come_in_a_file_of_its_own(command, tmp_path):
    some = ("--noise", "0.1", "--every", "2")
    command(*some, out="one.json")
    command(*some, checkpoint=["springs.pt"], out="more.json")
    command(*some, "--max-calls", "7", checkpoint=["springs.pt"], out="shorter.json")
    command(*some, "--raw", checkpoint=["springs.pt"], out="raw.json")
    command("--noise", "0.1", "0.2", "--every", "2", checkpoint=["springs.pt"], out="wider.json")
    result = json.loads((tmp_path / "more.json").read_text())
    result["runs"][0]["starts"]["0.1"]["all"]["before_mean"] *= 1.01
    (tmp_path / "drawn.json").write_text(json.dumps(result))
    joined = read_results([tmp_path / "one.json", tmp_path / "more.json"])
    assert "Mean ± sd over seeds (denoising: 2)" in format_result(joined)
    for other, message in (
        ("shorter.json", "no seed of denoising in another file: max_calls is 7, there None"),
        ("raw.json", "raw is True, there False"),
        ("wider.json", "starts is"),
        ("drawn.json", "start 0.1 has other draws"),
    ):
        with pytest.raises(ValueError, match=message):
            read_results([tmp_path / "one.json", tmp_path / other])


def test_samplers_are_compared_on_the_same_network_and_starts(command, tmp_path):
    out = command("--noise", "0.1", "--sampler", "direct", "jt", "itp", out="samplers.json").out
    runs = json.loads((tmp_path / "samplers.json").read_text())["runs"]
    assert [run["settings"]["sampler"] for run in runs] == ["direct", "jt", "itp"]
    for sampler in ("direct", "jt", "itp"):
        assert f"| noise 0.1 Å | denoising, {sampler} |" in out
    assert len({run["starts"]["0.1"]["all"]["before_mean"] for run in runs}) == 1


def test_a_subset_has_the_starts_of_the_whole(data):
    limits = Limits(periodic=False)
    whole = make_starts(read_set(data, 1), [0.2], True, 0, limits)
    some = make_starts(read_set(data, 2), [0.2], True, 0, limits)
    for all_of, part in zip(whole, some, strict=True):
        for number, start in zip(part.numbers, part.starts, strict=True):
            assert torch.equal(start.pos, all_of.starts[all_of.numbers.index(number)].pos)
    assert [one.every(4) for one in whole] == [[0, 4], [0, 3]]  # indices; number 3 has no start


@pytest.mark.parametrize("name", ["mmff94", "gfn2"])
def test_baselines_relax_molecules(data, name):
    (starts,) = make_starts(read_set(data, 1), [0.1], False, 0, Limits(periodic=False))
    run = run_baseline(name, starts)
    assert run.measured.converged.all()
    assert run.measured.after.median() < 0.5 * run.measured.before.median()
    assert len(run.positions) == len(NAMES)
    assert run.seconds > 0
    assert run.measured.calls.isnan().all() == (name == "mmff94")


def test_baselines_stand_beside_the_model_on_their_structures(command, tmp_path):
    printed = command(
        *("--noise", "0.1", "--baselines", "mmff94", "--baseline-every", "3"), out="both.json"
    )
    assert "whose number is a multiple of 3" in printed.out
    model, baseline = json.loads((tmp_path / "both.json").read_text())["runs"]
    assert model["starts"]["0.1"]["all"]["n"] == 6
    shared, own = model["starts"]["0.1"]["shared"], baseline["starts"]["0.1"]["shared"]
    assert shared["n"] == own["n"] == 2
    assert shared["before_mean"] == pytest.approx(own["before_mean"])


def test_baselines_run_alone(data, capsys):
    with pytest.raises(SystemExit):
        program.main(["--data", str(data)])
    assert "--checkpoint is missing" in capsys.readouterr().err
    program.main(["--data", str(data), "--noise", "0.1", "--baselines", "mmff94"])
    out = capsys.readouterr().out
    assert "| noise 0.1 Å | MMFF94, given the bonds |" in out
    assert "rank correlation" not in out


def test_speed_and_figure(command, tmp_path, capsys):
    out = command("--speed", "--rounds", 1, "--baselines", "mmff94", out="speed.json").out
    assert "| one by one |" in out
    assert "| MMFF94, given the bonds |" in out
    speed = json.loads((tmp_path / "speed.json").read_text())["speed"]
    assert [len(found) for found in speed["seconds"].values()] == [1, 1, 1]
    program.main(["--table", str(tmp_path / "speed.json")])
    assert "| batched |" in capsys.readouterr().out
    command("--starts", "--figure", tmp_path / "ways.png")
    assert (tmp_path / "ways.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--every", "0"], "--every must be >= 1, got 0"),
        (["--noise", "-0.1"], "--noise must be > 0"),
        (["--noise"], "give --noise or --starts"),
        (["--sampler", "euler"], "sampler must be 'direct', 'jt', 'as' or 'itp', got 'euler'"),
        (["--sampler", "jt", "itp", "--stop-level", "0"], "sampler itp counts its level down"),
        (["--sampler", "jt", "itp", "--speed"], "--speed and --figure take one --sampler, got 2"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--out", "nowhere/result.json"], "there is no folder nowhere"),
        (["--time-checkpoint", "a", "b"], "needs one file for each --checkpoint, 1, got 2"),
    ],
)
def test_errors_are_one_line(command, capsys, args, message):
    with pytest.raises(SystemExit) as stopped:
        command(*args)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]

"""The program where another version of fairchem-core is installed, or none."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers.paths import CONFIGS, ROOT
from helpers.pretend import pretend_fairchem

from dens import cli
from dens.settings import ConfigError

VERSION = "2.13.0"


@pytest.fixture
def fairchem2(monkeypatch) -> list:
    """As if fairchem-core 2 were installed; the command lines that its program got."""
    calls = []
    pretend_fairchem(monkeypatch, VERSION)
    program = SimpleNamespace(
        main=lambda: calls.append(list(sys.argv)), get_hydra_config_from_yaml=None
    )
    monkeypatch.setitem(sys.modules, "fairchem.core", SimpleNamespace(_cli=program))
    monkeypatch.setitem(sys.modules, "fairchem.core._cli", program)
    return calls


def error_of(capsys, monkeypatch, *argv: str, program: str = "/bin/fairchem") -> str:
    """What the program prints to stderr, where it ends with status 2."""
    monkeypatch.setattr(sys, "argv", [program, *argv])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("program", ["/bin/fairchem", "/bin/dens"])
@pytest.mark.parametrize("first", [[], ["main.py"]])
@pytest.mark.parametrize(
    "argv",
    [
        ["-c", "train.yml"],
        ["--config", "train.yaml", "job.seed=1", "+runner.new=2", "~job.logger"],
        ["--config=train.yaml", "job.run_name='--seed'"],
        ["trian"],
        [],
    ],
)
def test_fairchem_2_keeps_its_own_command_line(program, first, argv, fairchem2, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, *first, *argv])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    assert fairchem2 == [[program, *argv]]


def test_its_help_is_its_own_and_ours_is_that_of_dens(fairchem2, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/bin/fairchem", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert fairchem2 == [["/bin/fairchem", "--help"]]
    for argv in (["--help"], ["data", "--help"]):
        monkeypatch.setattr(sys, "argv", ["/bin/dens", *argv])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
    assert len(fairchem2) == 1
    assert "convert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config-yml", "a.yml"], "--config-yml is an option of fairchem-core 1.10, and "),
        (["--mode=train"], f"and {VERSION} is installed: write a config whose runner does it"),
        (["-c", "a.yaml", "--num-gpus", "8"], "write job.scheduler.ranks_per_node=N"),
        (["-c", "a.yaml", "--optim.lr=1"], "--optim.lr=1: since fairchem-core 2, overrides have"),
        (["-c", str(CONFIGS / "oc20/eqv2_demo.yml")], "is a config for fairchem-core 1.10 (it has"),
        (["export"], f"export needs fairchem-core 1.10, and {VERSION} is installed: pip install"),
        (["relax", "a.traj"], f"relax needs fairchem-core 1.10, and {VERSION} is installed"),
        (["data", "download"], f"data download needs fairchem-core 1.10, and {VERSION} is"),
    ],
)
def test_what_only_fairchem_1_has_takes_one_line(argv, message, fairchem2, monkeypatch, capsys):
    error = error_of(capsys, monkeypatch, *argv)
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not fairchem2


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("a.yml", "defaults: [_self_, {model: esen}]\nrunner: {}", True),
        ("a.yaml", "defaults: [_self_, {model: esen}]\nrunner: {}", False),
        ("a.yml", "defaults: [_self_]\nrunner: {}", False),
        ("a.yml", "runner: {}", False),
        ("a.yml", "trainer: mine\nrunner: {trainer: '${trainer}'}", False),
        ("a.yml", "{", False),
        ("a.yml", "[1]", False),
    ],
)
def test_only_defaults_of_a_yml_are_refused(
    name, text, refused, fairchem2, monkeypatch, capsys, tmp_path
):
    path = tmp_path / name
    path.write_text(text)
    if refused:
        assert "rename it to a.yaml" in error_of(capsys, monkeypatch, "-c", str(path))
    else:
        monkeypatch.setattr(sys, "argv", ["fairchem", "-c", str(path)])
        with pytest.raises(SystemExit):
            cli.main()
    assert len(fairchem2) == (not refused)


RANK = """Traceback (most recent call last):
  File "settings.py", line 1, in parse
dens.settings.ConfigError: unknown key sigmaa = 1
unknown key probb = 1

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
hydra.errors.InstantiationException: Error in call to target 'dens.fairchem2.DeNSTrainEvalUnit':
"""


def _failed_rank() -> Exception:
    error = RuntimeError("a rank failed")
    report = {"message": "InstantiationException", "extraInfo": {"py_callstack": RANK}}
    error.failures = {0: SimpleNamespace(message=report)}
    return error


def _failed_build() -> Exception:
    error = TypeError("Error in call to target")
    error.__cause__ = ConfigError("unknown key sigmaa = 1\nunknown key probb = 1")
    return error


@pytest.mark.parametrize("error", [_failed_rank(), _failed_build()], ids=["rank", "here"])
def test_of_errors_in_our_settings_the_lines_are_left(error, fairchem2, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(sys.modules["fairchem.core._cli"], "main", fail)
    printed = error_of(capsys, monkeypatch, "-c", "a.yaml")
    assert printed == "error: unknown key sigmaa = 1\nerror: unknown key probb = 1\n"


def test_other_errors_of_the_host_are_its_own(fairchem2, monkeypatch):
    def fail():
        raise ValueError("Found unused keys")

    monkeypatch.setattr(sys.modules["fairchem.core._cli"], "main", fail)
    monkeypatch.setattr(sys, "argv", ["fairchem", "-c", "a.yaml"])
    with pytest.raises(ValueError, match="Found unused keys"):
        cli.main()


@pytest.mark.parametrize(
    ("version", "module", "instead"),
    [("2.24.0", "dens.fairchem1", "DeNSTrainEvalUnit"), ("1.10.0", "dens.fairchem2", "DeNSTrain")],
)
def test_an_adapter_refuses_the_other_version(version, module, instead, monkeypatch):
    pretend_fairchem(monkeypatch, version)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match=f"{module} needs .* {version} is installed: .*{instead}"):
        _ = importlib.import_module(module).DeNSTrainEvalUnit


WITHOUT = """
import atexit, sys
from importlib import metadata
version = metadata.version
def of_others(name):
    if name == "fairchem-core":
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = of_others
sys.modules["fairchem"] = None
import dens
from dens.cli import main
heavy = {"torch", "wandb", "hydra", "numpy", "dens.fairchem1", "dens.fairchem2"}
atexit.register(lambda: print("loaded", sorted(heavy & set(sys.modules))))
main()
"""


def run_without(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run the program as where no fairchem-core is installed; it prints heavy modules it loaded."""
    command = [sys.executable, "-c", WITHOUT, *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_help_needs_no_host_and_loads_nothing():
    done = run_without("--help")
    assert done.returncode == 0, done.stderr
    assert "inspect" in done.stdout
    assert done.stdout.endswith("loaded []\n")


@pytest.mark.parametrize("argv", [["--config", "a.yaml"], ["check", "a.yaml"]])
def test_without_fairchem_both_versions_are_named(argv):
    done = run_without(*argv)
    assert done.returncode == 2
    says = "error: this needs fairchem-core: pip install 'fairchem-dens[fairchem2]', or "
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1

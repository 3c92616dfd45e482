"""The program: which command runs, what it prints, its exit status, and what it imports."""

from __future__ import annotations

import configparser
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers.paths import ROOT

from dens import cli
from dens.fairchem1 import launch as launcher
from dens.settings import ConfigError


def program(
    *argv: str, cwd: Path = ROOT, python: tuple[str, ...] = (str(ROOT / "main.py"),)
) -> subprocess.CompletedProcess[str]:
    """Run ``python main.py`` as a user does, or python with other arguments."""
    return subprocess.run(
        [sys.executable, *python, *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )


def error_of(capsys, *argv: str) -> str:
    """What the program prints to stderr, where it ends with status 2."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(argv))
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def launched(monkeypatch) -> list:
    """The runs that would be launched, as (args, overrides)."""
    runs = []
    monkeypatch.setattr(launcher, "launch", lambda *run: runs.append(run))
    return runs


def test_the_console_scripts_are_one_program():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")[1:]
    assert scripts == ["fairchem = dens.cli:main", "dens = dens.cli:main"]


@pytest.mark.parametrize("first", [[], ["main.py"], ["./main.py"]])
def test_one_leading_main_py_is_ignored(first, launched):
    cli.main([*first, "--config", "a.yml", "--optim.lr=1"])
    ((args, overrides),) = launched
    assert (args.config_yml, args.mode, overrides) == (Path("a.yml"), "train", ["--optim.lr=1"])


def test_arguments_default_to_those_of_the_process(launched, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fairchem", "optim.lr=1", "--config=a.yml"])
    cli.main()
    assert launched[0][1] == ["optim.lr=1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "error: unknown command 'trian': the commands are data, check, "),
        (["main.py", "main.py"], "error: unknown command 'main.py'"),
        ([], "error: the following arguments are required: --config-yml"),
        (["demo-data"], "error: Missing argument 'OUT'."),
        (["data", "demo"], "error: Missing argument 'OUT'."),
        (["data", "stast"], "error: No such command 'stast'."),
        (["data", "stats", "nowhere"], "error: "),
        (["evaluate", "--config", "c.yml"], "error: Missing option '--checkpoint'."),
        (
            ["evaluate", "--config", "c.yml", "--checkpoint", "w.pt", "--split", "train"],
            "error: Invalid value for '--split': 'train' is not one of",
        ),
        (["check", "c.yml", "--sample", "-1"], "error: Invalid value for '--sample': -1 is not in"),
        (["check", "c.yml", "--num-gpus", "0"], "error: Invalid value for '--num-gpus': 0 is not"),
    ],
)
def test_usage_errors_take_one_line(argv, message, capsys):
    error = error_of(capsys, *argv)
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_each_line_of_a_config_error_is_marked(capsys, monkeypatch):
    def refuse(*_):
        raise ConfigError("sigma must be ...\nprob must be ...")

    monkeypatch.setattr(launcher, "launch", refuse)
    error = error_of(capsys, "--config", "a.yml")
    assert error == "error: sigma must be ...\nerror: prob must be ...\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(launcher, "launch", fail)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["--config", "a.yml"])


@pytest.mark.parametrize("error", [ValueError("no\nsuch run"), OSError("no such run")])
def test_errors_of_commands_take_one_line(error, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("dens.runs.report.write.write_report", fail)
    assert error_of(capsys, "report", "r1") == "error: no such run\n"


@pytest.mark.parametrize("argv", [["--config", "a.yml"], ["report", "r1"]])
def test_an_interrupt_takes_one_line(argv, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "launch", interrupt)
    monkeypatch.setattr("dens.runs.report.write.write_report", interrupt)
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


# ---- other versions of fairchem ------------------------------------------------------------------


def test_training_without_fairchem_says_what_to_install(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "dens.fairchem1.launch")
    monkeypatch.setitem(sys.modules, "fairchem.core.common.flags", None)
    error = error_of(capsys, "--config", "a.yml")
    assert error.startswith("error: this needs fairchem-core 1.10: pip install ")


def test_demo_data_needs_no_terminal(tmp_path):
    """Nor does it write a line of progress where there is none."""
    program = (
        "import dens.data.demo as demo, functools; from dens.cli import main; "
        "few = {'train_frames': 2, 'val_frames': 1}; "
        "demo.make_demo_data = functools.partial(demo.make_demo_data, **few); "
        f"main(['data', 'demo', {str(tmp_path / 'out')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "frames\n" not in done.stderr
    assert (tmp_path / "out" / "train").is_dir()


@pytest.mark.parametrize("command", [["data", "demo"], ["demo-data"]])
@pytest.mark.parametrize("terminal", [True, False])
def test_demo_data(command, terminal, tmp_path, capsys, monkeypatch):
    def make(out, seed, progress=None):
        assert (progress is not None) == terminal
        if progress:
            progress("train", 1, 2)
            progress("train", 2, 2)
        if out.exists():
            raise ValueError(f"{out} already exists")
        return types.SimpleNamespace(table=lambda: f"made {out} from {seed}")

    monkeypatch.setattr("dens.data.demo.make_demo_data", make)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, str(tmp_path / "out"), "--seed", "3"])
    assert not exit_.value.code
    printed = capsys.readouterr()
    assert printed.out == f"made {tmp_path / 'out'} from 3\n"
    assert printed.err.endswith("train: 2 of 2 frames\n" if terminal else "")
    assert f"error: {tmp_path} already exists\n" in error_of(capsys, *command, str(tmp_path))


def test_evaluate_passes_its_arguments_on(monkeypatch):
    calls = []
    module = types.ModuleType("dens.fairchem1.evaluate")
    module.evaluate_command = lambda *args, **more: calls.append((args, more))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    argv = "evaluate --config c.yml --checkpoint w.pt --optim.dens.sigma=0.2 --split test"
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv.split())
    assert not exit_.value.code
    more = {"split": "test", "overrides": ["--optim.dens.sigma=0.2"]}
    assert calls == [((Path("c.yml"), Path("w.pt")), more)]


@pytest.mark.parametrize("command", ["data download", "download-data"])
def test_download_runs_fairchems_script(command, tmp_path, monkeypatch):
    shell = []
    monkeypatch.setattr(os, "system", shell.append)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    # it gets as far as reading what the (here empty) download unpacked to
    with pytest.raises(RuntimeError, match="Did you uncompress"):
        cli.main(f"{command} --task s2ef --split 200k --data-path {tmp_path}".split())
    assert shell[0].startswith("wget ")
    assert shell[0].endswith(f"s2ef_train_200K.tar -P {tmp_path}")


def test_help_shows_options_and_commands():
    result = program("--help")
    assert result.returncode == 0, result.stderr
    for part in ("--gp-gpus", "--config", "--optim.dens.sigma=0.15", *cli.commands.commands):
        assert part in result.stdout
    assert "demo-data" not in result.stdout


@pytest.mark.parametrize("group", [cli.commands, cli.data])
def test_help_lines_are_those_of_the_commands(group):
    for name, (target, line) in group.lazy.items():
        module, attribute = target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert line in ("", cli.first_line(command)), name


LIGHT = """
import sys, time
import dens, dens.cli
sys.argv = ["dens", *sys.argv[1:]]
try:
    if sys.argv[1:]:
        dens.cli.main()
finally:
    heavy = {"torch", "fairchem", "pydantic", "numpy", "ase", "wandb"} & set(sys.modules)
    print(heavy or "light", time.process_time() < 0.5)
"""


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["data", "--help"], ["data"]])
def test_help_and_the_package_itself_import_nothing_heavy(argv):
    result = program(*argv, python=("-c", LIGHT))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "light True"


def test_the_module_is_a_program_too():
    result = program("data", python=("-m", "dens.cli"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: dens data ")


def test_commands_of_data_get_the_reader_of_configs():
    seen = []
    command = click.Command("probe", callback=click.pass_obj(seen.append))
    for group, argv in ((cli.commands, ["data", "probe"]), (cli.data, ["probe"])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(cli.data.commands, "probe", command)
            assert CliRunner().invoke(group, argv).exit_code == 0
    assert seen == [cli.open_config] * 2


def test_missing_data_end_the_program_with_one_clear_line(tmp_path):
    config = "trainer: forces\nmodel: {}\noptim: {}\ndataset: {train: {src: data/oc20/nothing}}\n"
    (tmp_path / "c.yml").write_text(config)
    result = program("main.py", "--config", "c.yml", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert "dataset.train.src = data/oc20/nothing" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yml"]


def test_a_closed_output_is_no_error():
    """As in ``dens recipes | head -n 0``."""
    command = [sys.executable, str(ROOT / "main.py"), "recipes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1

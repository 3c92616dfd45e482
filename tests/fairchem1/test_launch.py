from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import submitit
import yaml
from fairchem.core import _cli
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dens.fairchem1 import launch as launcher
from dens.fairchem1.launch import Runner, launch, new_timestamp_id, parse_args, run_rank
from dens.settings import ConfigError

TIMESTAMP = r"\d{4}(-\d\d){5}-[0-9a-f]{4}"


@pytest.fixture
def config_yml(tmp_path, monkeypatch) -> Path:
    """A config of the recording trainer; the test runs in its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/data.0000.lmdb").touch()
    path = tmp_path / "c.yml"
    config = {
        "trainer": "helpers.recording_trainer.RecordingTrainer",
        "dataset": {"train": {"src": "data"}},
        "model": {"name": "none"},
        "optim": {"num_workers": 0, "lr": 0.1},
        "logger": "tensorboard",
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def run(monkeypatch):
    """Launch with arguments, up to the start of the rank; returns the config it would get."""
    configs = []
    monkeypatch.setattr(launcher, "run_rank", configs.append)
    monkeypatch.setattr(_cli.distutils, "setup_env_local", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def start(*argv: object) -> dict:
        launch(*parse_args([str(arg) for arg in argv]))
        return configs.pop()

    return start


@pytest.mark.parametrize(
    ("argv", "expected", "overrides"),
    [
        ("--config-yml a.yml", {"mode": "train", "config_yml": Path("a.yml"), "cpu": False}, []),
        ("--config a.yml", {"config_yml": Path("a.yml")}, []),
        ("--config=a.yml", {"config_yml": Path("a.yml")}, []),
        ("--mode validate --checkpoint c.pt", {"mode": "validate", "checkpoint": "c.pt"}, []),
        ("--num-gpus 4 --gp-gpus 2 --amp", {"num_gpus": 4, "gp_gpus": 2, "amp": True}, []),
        ("--num-gpus=4 --num-nodes=2", {"num_gpus": 4, "num_nodes": 2}, []),
        (
            "--submit --sweep-yml s.yml --slurm-partition gpu --slurm-mem 10",
            {"submit": True, "sweep_yml": Path("s.yml"), "slurm_partition": "gpu", "slurm_mem": 10},
            [],
        ),
        ("--timestamp-id x --identifier y", {"timestamp_id": "x", "identifier": "y"}, []),
        ("--optim.dens.sigma=0.15 --seed 3", {"seed": 3}, ["--optim.dens.sigma=0.15"]),
        (
            "--logger=wandb optim.lr=1e-3 --dataset.train.src=a-b/c.d",
            {"mode": "train"},
            ["--logger=wandb", "optim.lr=1e-3", "--dataset.train.src=a-b/c.d"],
        ),
    ],
)
def test_arguments(argv, expected, overrides):
    argv = argv if "--config" in argv else f"--config a.yml {argv}"
    args, given = parse_args(argv.split())
    assert given == overrides
    assert {key: getattr(args, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --config-yml"),
        (["--config"], "argument --config-yml: expected one argument"),
        (["--config", "a", "--mode", "trian"], "invalid choice: 'trian'"),
        (["--config", "a", "--num-gpus", "two"], "argument --num-gpus: invalid int value: 'two'"),
        (["--config", "a", "--num-gpus", "0"], "--num-gpus .* at least 1, got 0"),
        (["--config", "a", "--num-nodes", "0"], "--num-nodes must be at least 1, got 0"),
        (["--config", "a", "--print-every", "0"], "--print-every must be at least 1, got 0"),
        (["--config", "a", "--seed", "-1"], "--seed must be from 0 to 4294967295, got -1"),
        (["--config", "a", "--gp-gpus", "2"], "--gp-gpus must divide the number of ranks, 1, got"),
        (["--config", "a", "--gp-gpus", "0"], "--gp-gpus must divide the number of ranks, 1, got"),
        *(
            (
                ["--config", "a", option, f"x{bad}y"],
                f"{option} .* must have none of .* got {bad} in",
            )
            for option in ("--timestamp-id", "--identifier")
            for bad in "/:#%"
        ),
        (["--config", "a", "--timestamp-id", "a?b"], "--timestamp-id .* must have none of"),
        (["--config", "a", "--timestamp-id", " a"], "--timestamp-id must have at most 100"),
        (["--config", "a", "--timestamp-id", ".."], "--timestamp-id must have at most 100"),
        (["--config", "a", "--identifier", "a" * 101], "--identifier must have at most 100"),
        (["--config", "a", "--fast"], "'--fast' is neither an option of fairchem nor an override"),
        (["--config", "a", "--num-gpsu=2"], "'--num-gpsu=2' is neither"),
        (["--config", "a", "--optim.lr", "1"], "'--optim.lr' .* written --section.key=value"),
        (["--config", "a", "--optim.lr=1=2"], "'--optim.lr=1=2' .* with one '='"),
        (["--config", "a", "--optim..lr=1"], "'--optim..lr=1' is neither"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(argv, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse_args(argv)
    assert "\n" not in str(error.value)


def test_timestamp_ids_are_unique_and_carry_the_identifier():
    ids = [new_timestamp_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(re.fullmatch(TIMESTAMP, i) for i in ids)
    assert re.fullmatch(TIMESTAMP + "-small", new_timestamp_id("small"))


def test_the_run_gets_fairchems_config_with_our_defaults(run, config_yml, caplog):
    caplog.set_level(logging.INFO)
    config = run("--config", config_yml, "--optim.lr=0.5", "--optim.dampening.x=1")
    assert (config["mode"], config["cpu"], config["distributed_backend"]) == ("train", True, "gloo")
    assert config["optim"] == {"num_workers": 0, "lr": 0.5, "dampening": {"x": 1}}
    assert re.fullmatch(TIMESTAMP, config["timestamp_id"])
    assert [m for m in caplog.messages if "CUDA" in m] == [
        "There is no CUDA device: running on the CPU with gloo, as --cpu does."
    ]
    assert run("--config", config_yml, "--timestamp-id", "mine")["timestamp_id"] == "mine"
    assert run("--config", config_yml, "--identifier", "a")["timestamp_id"].endswith("-a")


@pytest.mark.parametrize("logger", ["tensorboard", {"name": "wandb", "project": "p"}])
def test_quiet_reaches_the_logger_and_the_evaluations(run, config_yml, logger):
    config_yml.write_text(
        yaml.safe_dump({**yaml.safe_load(config_yml.read_text()), "logger": logger})
    )
    config = run("--config", config_yml, "--quiet")
    named = logger if isinstance(logger, dict) else {"name": logger}
    assert config["logger"] == {**named, "quiet": True}
    assert config["hide_eval_progressbar"]
    config = run("--config", config_yml)
    assert config["logger"] == logger
    assert "hide_eval_progressbar" not in config


def test_a_gpu_is_used_where_there_is_one(run, config_yml, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = run("--config", config_yml)
    assert (config["cpu"], config["distributed_backend"]) == (False, "nccl")
    assert run("--config", config_yml, "--cpu")["cpu"] is True
    assert "CUDA" not in caplog.text


def test_fairchem_is_left_as_it_was(run, config_yml):
    before = dict(vars(_cli))
    run("--config", config_yml)
    with pytest.raises(ConfigError):
        run("--config", "nowhere.yml")
    assert dict(vars(_cli)) == before
    assert not hasattr(collections, "MutableMapping")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot read broken\.yml: No such file or directory"),
        ("a: [1\nb: 2", r"broken\.yml .* not valid YAML: .*line 2, column 2"),
        ("a: 1\na: 2", r"broken\.yml: Duplicate Key: 'a' .* line 2"),
        ("", r"broken\.yml must be a mapping of sections"),
        ("- trainer: ocp", r"broken\.yml must be a mapping of sections"),
        ("trainer", r"broken\.yml must be a mapping of sections"),
        (Path, r"cannot read broken\.yml: Is a directory"),
        ("includes: other.yml", r"broken\.yml must be .* Includes must be a list"),
        ("includes: [other.yml]", r"broken\.yml: Cannot find include YML other\.yml"),
        ("trainer: nowhere.Trainer\noptim: {}", "nowhere.Trainer"),
        ("trainer: forces\noptim: {dens: {prob: 1}}", "forces.*would ignore"),
    ],
)
def test_wrong_configs_are_refused_in_one_line(text, message, run, config_yml):
    if text is Path:
        Path("broken.yml").mkdir()
    elif text is not None:
        Path("broken.yml").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        run("--config", "broken.yml")
    assert "\n" not in str(error.value)


class FakeExecutor:
    """Stands in for submitit: takes the jobs and runs none."""

    submitted: tuple | None = None

    def __init__(self, folder, **_):
        self.folder, self.parameters = folder, {}

    @staticmethod
    def which() -> str:
        return "slurm"

    def update_parameters(self, **_) -> None: ...

    def map_array(self, function, configs) -> list:
        type(self).submitted = function, configs
        return []


@pytest.mark.parametrize("given", [[], ["--timestamp-id", "mine"]])
def test_each_run_of_a_sweep_is_checked_and_gets_its_own_id(given, config_yml, monkeypatch):
    monkeypatch.setattr(_cli, "AutoExecutor", FakeExecutor)
    monkeypatch.setattr(launcher, "AutoExecutor", FakeExecutor)
    checked = []
    monkeypatch.setattr(launcher, "settle", lambda config: checked.append(config) or config)
    Path("sweep.yml").write_text("optim: {lr: [1, 2], num_workers: [0, 3]}")
    argv = ["--config", str(config_yml), "--submit", "--sweep-yml", "sweep.yml", *given]
    launch(*parse_args(argv))
    runner, configs = FakeExecutor.submitted
    assert type(runner) is Runner
    swept = [(c["optim"]["lr"], c["optim"]["num_workers"]) for c in configs]
    assert swept == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert checked == configs
    assert not configs[0]["cpu"]  # the cluster has its own devices
    assert len({c["timestamp_id"] for c in configs}) == 4
    assert all(c["timestamp_id"].startswith(given[-1] if given else "20") for c in configs)

    Path("sweep.yml").write_text("model: {layers: {deep: [1]}}")
    with pytest.raises(ConfigError, match=r"sweep\.yml sets a key below 'layers'"):
        launch(*parse_args(argv))


def test_jobs_and_ranks_name_this_module(tmp_path):
    assert b"dens.fairchem1.launch" in pickle.dumps(run_rank)
    assert pickle.loads(pickle.dumps(run_rank)) is run_rank
    submitit.core.utils.DelayedSubmission(Runner(), {}).dump(tmp_path / "job.pkl")
    assert b"dens.fairchem1.launch" in (tmp_path / "job.pkl").read_bytes()


def test_a_preempted_job_goes_on_with_our_runner(run, config_yml, free_port, monkeypatch):
    config = run("--config", config_yml)
    rank = {"RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port}
    for name, value in {**rank, "PYTORCH_CUDA_ALLOC_CONF": ""}.items():  # fairchem sets the last
        monkeypatch.setenv(name, str(value))
    runner = Runner()
    runner(config)
    delayed = runner.checkpoint()
    assert isinstance(delayed, submitit.helpers.DelayedSubmission)
    assert type(delayed.function) is Runner
    assert delayed.function is not runner
    (resumed,) = delayed.args
    assert resumed["timestamp_id"] == config["timestamp_id"]
    assert resumed["checkpoint"] == os.path.join("checkpoints", "checkpoint.pt")


@pytest.mark.parametrize(
    ("exitcode", "error", "raised", "message"),
    [
        (
            1,
            "ConfigError: sigma must be\nprob must be",
            ConfigError,
            r"^sigma must be\nprob must be$",
        ),
        (1, "RuntimeError: boom", SystemExit, r"rank *: 3 (.*\n)+.*line 7, in train"),
        (-9, None, SystemExit, r"rank *: 3 (.*\n)+.*Signal 9 \(SIGKILL\)"),
    ],
)
def test_the_error_of_a_rank_is_shown(exitcode, error, raised, message, config_yml, monkeypatch):
    path = config_yml.with_name("error.json")
    if error:
        info = {"py_callstack": f"line 7, in train\n{error}", "timestamp": "0"}
        path.write_text(json.dumps({"message": {"message": error, "extraInfo": info}}))
    failures = {3: ProcessFailure(local_rank=3, pid=1, exitcode=exitcode, error_file=str(path))}

    def main(*_):
        raise ChildFailedError("run_rank", failures)

    monkeypatch.setattr(_cli, "main", main)
    with pytest.raises(raised, match=message):
        launch(*parse_args(["--config", str(config_yml)]))


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/rank*.json"))]


def test_a_submitted_job_imports_dens(config_yml, submit, tmp_path):
    submit("--config", str(config_yml), "--cpu")
    (record,) = records(tmp_path)
    assert (record["world_size"], record["dens_before_fairchem"]) == (1, True)

    with pytest.raises(ConfigError, match="without SLURM runs one rank, not --num-gpus 2"):
        launch(*parse_args(["--config", str(config_yml), "--submit", "--num-gpus", "2"]))


def test_spawned_ranks_import_dens_and_report_their_errors(config_yml, children_env, tmp_path):
    program = "from dens.cli import main; main()"  # ranks import no script again, just their entry
    command = [sys.executable, "-c", program, "--config", str(config_yml), "--cpu"]
    with socket.socket() as other_run:
        with contextlib.suppress(OSError):  # it is in use: just as well
            other_run.bind(("localhost", 29400))  # where fairchem lets the ranks of any run meet
            other_run.listen()
        result = subprocess.run(
            [*command, "--num-gpus", "2", "--optim.refuse_on=1"],
            env=children_env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1] == "error: optim.refuse_on must not be set, got 1"
    ranks = records(tmp_path)
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert all(rank["dens_before_fairchem"] and rank["cpu"] for rank in ranks)
    assert len({rank["timestamp_id"] for rank in ranks}) == 1

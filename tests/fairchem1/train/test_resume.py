"""Resume interrupted runs; save only complete steps and finite weights."""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from helpers.trainers import DENS, STOCK_MODEL, trainer_config, write_dataset
from kill_and_resume import compare, unequal, write_config

from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.checkpoints.state import write_checkpoint
from dens.process import StopSignals
from dens.runs.check.schedule import Sampling
from dens.safe.checkpoints import safe_load
from dens.settings import ConfigError


@pytest.mark.parametrize(("of", "steps", "kills"), [("stress", 40, 5), ("gradients", 20, 2)])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, of, steps, kills):
    """Short form of kill_and_resume.py: SIGKILL, also while saving, and SIGTERM."""
    # the last signal may find the run at its end
    found = compare(tmp_path, steps, kills, of=of)
    assert found.split()[0] in (str(kills - 1), str(kills))


def test_a_torn_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    write_checkpoint({"step": 1}, str(tmp_path), "checkpoint.pt")

    def full_disk(state, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint({"step": 2}, str(tmp_path), "checkpoint.pt")
    assert safe_load(tmp_path / "checkpoint.pt") == {"step": 1}


def test_weights_that_are_not_finite_are_not_saved(saving_trainer):
    trainer, path = saving_trainer
    trainer.save()
    before = path.read_bytes()
    name, weight = next(iter(trainer.model.named_parameters()))
    weight.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match=f"{name} is not finite: no checkpoint was wri"):
        trainer.save()
    assert path.read_bytes() == before


@pytest.fixture
def saving_trainer(dataset, tmp_path):
    config = trainer_config(dataset, is_debug=False, run_dir=str(tmp_path), timestamp_id="run")
    config["logger"] = "tensorboard"
    return DeNSTrainer(**config), tmp_path / "checkpoints" / "run" / "checkpoint.pt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs: its config and its last checkpoint."""
    folder = tmp_path_factory.mktemp("finished")
    src = write_dataset(folder / "train")
    config = trainer_config(src, is_debug=False, run_dir=str(folder), timestamp_id="run")
    config["logger"] = "tensorboard"
    trainer = DeNSTrainer(**copy.deepcopy(config))
    trainer.train(disable_eval_tqdm=True)
    config["is_debug"] = True
    return config, str(folder / "checkpoints" / "run" / "checkpoint.pt")


def test_the_checkpoint_of_a_step_holds_all_of_the_step(saving_trainer):
    """The evaluation and the schedule's step are in it; fairchem saves before both."""
    trainer, path = saving_trainer
    trainer.config["optim"]["eval_every"] = 2
    trainer.train(disable_eval_tqdm=True)
    saved = safe_load(path)
    assert saved["step"] == 4
    assert saved["scheduler"]["last_epoch"] == 4
    assert saved["best_val_metric"] == trainer.best_val_metric < 1e9


def test_a_model_without_noise_head_is_resumed_too(dataset, tmp_path):
    """With prob: 0 the trainer takes plain EquiformerV2, and resumes its optimizer and step."""
    settings = {"is_debug": False, "run_dir": str(tmp_path), "timestamp_id": "run"}
    plain = {"dens": {**DENS, "prob": 0.0}, "model": STOCK_MODEL, "logger": "tensorboard"}
    config = trainer_config(dataset, **settings, **plain, optim={"checkpoint_every": 3})
    trainer = DeNSTrainer(**config)
    trainer.train(disable_eval_tqdm=True)
    other = DeNSTrainer(**config)
    other.load_checkpoint(str(tmp_path / "checkpoints" / "run" / "checkpoint.pt"))
    assert other.step == trainer.step == 4  # the end of training is saved as well
    assert other.optimizer.state_dict()["state"].keys()
    tuned = DeNSTrainer(**trainer_config(dataset))  # a model with DeNS: only the weights fit
    tuned.load_checkpoint(str(tmp_path / "checkpoints" / "run" / "checkpoint.pt"))
    assert tuned.step == 0


RESUMED = [  # settings of a run of 8 structures, 4 a step, and what is said on resuming at step 4
    ({"batch_size": 8}, "cannot resume at step 4: the checkpoint has 2 steps an epoch (4 of 8"),
    ({"batch_size": 2}, "this run has 4 steps an epoch (2 of 8 structures a step); keep the data"),
    ({"grad_accumulation_steps": 2}, "x ranks = 4, or start afresh from its weights"),
    ({}, "Nothing to train: the checkpoint, of step 4, is at the end of max_epochs = 2"),
    ({"batch_size": 5, "max_epochs": 3}, "goes on at step 4 with 2 steps an epoch (5 of 8 stru"),
    ({"batch_size": 2, "grad_accumulation_steps": 2, "max_epochs": 3}, None),
]


@pytest.mark.parametrize(("optim", "message"), RESUMED, ids=[str(o) for o, _ in RESUMED])
def test_steps_of_an_epoch_are_those_of_the_checkpoint(optim, message, finished, caplog):
    config, path = finished
    config = copy.deepcopy(config)
    trainer = DeNSTrainer(**{**config, "optimizer": {**config["optimizer"], **optim}})
    trainer.load_checkpoint(path)
    trainer.logger = None
    if message is not None and "Nothing" not in message and "goes on" not in message:
        with pytest.raises(ConfigError) as error:
            trainer.train(disable_eval_tqdm=True)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        return
    trainer.train(disable_eval_tqdm=True)
    notices = [r.message for r in caplog.records if "step 4" in r.message and r.levelno >= 30]
    assert [message in notice for notice in notices] == ([] if message is None else [True])
    assert trainer.step == 2 * trainer.config["optim"]["max_epochs"]


def test_a_checkpoint_of_an_older_version_is_refused_by_its_steps(finished):
    config, path = finished
    config = copy.deepcopy(config)
    trainer = DeNSTrainer(**{**config, "optimizer": {**config["optimizer"], "batch_size": 8}})
    content = safe_load(path)
    del content["dens"]["sampling"]
    trainer.load_checkpoint(path, content)
    with pytest.raises(
        ConfigError, match="the checkpoint has 2 steps an epoch, and this run has 1"
    ):
        trainer.train(disable_eval_tqdm=True)


def test_the_number_of_ranks_does_not_matter_where_the_batch_stays():
    for structures in (7, 24, 25, 101):
        one = Sampling.of({"batch_size": 8}, structures, 1)
        for ranks in (2, 4, 8):
            assert Sampling.of({"batch_size": 8 // ranks}, structures, ranks) == one
            # as fairchem's samplers count: of the share of each rank
            share = -(-structures // ranks)
            assert one.steps == -(-share // (8 // ranks))


def test_sigterm_waits_for_the_step(saving_trainer):
    trainer, path = saving_trainer
    forward = trainer.forward_micro_batch

    def interrupted(batch):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(batch)

    trainer.forward_micro_batch = interrupted
    with pytest.raises(SystemExit) as stopped:
        trainer.train(disable_eval_tqdm=True)
    assert stopped.value.code == 143
    assert safe_load(path)["step"] == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_handlers_are_left_or_deferred():
    """submitit's SIGTERM handler stays; its signal of preemption is deferred, then delivered."""
    calls = []
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        for number in before:
            signal.signal(number, lambda n, _: calls.append(n))
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert calls == [signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGUSR2)
            assert calls == [signal.SIGTERM]
            assert signals.pending == signal.SIGUSR2
            signals.deliver()
            assert calls == [signal.SIGTERM, signal.SIGUSR2]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_preempted_job_is_requeued(tmp_path, submit, monkeypatch):
    """With submitit's local executor: the step is saved, the job restarts, results are equal."""
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path, steps=10)
    config = yaml.safe_load(path.read_text())
    config["trainer"] = "helpers.interrupted_trainer.InterruptedTrainer"
    config["optim"]["checkpoint_every"] = 10
    path.write_text(yaml.safe_dump(config))
    preempted = tmp_path / "preempted"
    for run in ("plain", "requeued"):
        if run == "plain":
            preempted.touch()
        submit("--config", str(path), "--cpu", "--timestamp-id", run)
        preempted.unlink()
    logs = "".join(log.read_text() for log in tmp_path.glob("logs/*/*_log.err"))
    assert logs.count("Stopped after step 3, which is saved") == 1
    saved = [safe_load(f"checkpoints/{run}/checkpoint.pt") for run in ("plain", "requeued")]
    assert saved[0]["step"] == 10
    assert not unequal(*saved)


def test_sigterm_stops_all_ranks_alike(tmp_path, children_env):
    """The launcher gets the signal; both ranks stop after one step, which is saved."""
    config = write_config(tmp_path, steps=1000)
    program = "from dens.cli import main; main()"  # ranks import no script again, just their entry
    argv = ["--config", str(config), "--cpu", "--num-gpus", "2", "--timestamp-id", "run"]
    command = [sys.executable, "-c", program, *argv]
    log = tmp_path / "logs" / "tensorboard" / "run" / "metrics.jsonl"
    printed = tmp_path / "printed.txt"
    with (
        printed.open("w") as out,
        subprocess.Popen(command, env=children_env, cwd=tmp_path, stdout=out, stderr=out) as run,
    ):
        deadline = time.monotonic() + 240
        while not (log.exists() and len(log.read_text().splitlines()) > 3):
            assert run.poll() is None, printed.read_text()
            assert time.monotonic() < deadline, "no step in four minutes"
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
    assert run.returncode == 143, printed.read_text()
    step = safe_load(tmp_path / "checkpoints" / "run" / "checkpoint.pt")["step"]
    assert step > 3
    assert f"Stopped after step {step}, which is saved" in printed.read_text()
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["step"] == step

"""Resume interrupted runs; save only complete steps and finite weights."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from helpers.trainers import DENS, STOCK_MODEL, trainer_config
from kill_and_resume import compare, unequal, write_config

from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.checkpoints.state import write_checkpoint
from dens.process import StopSignals
from dens.safe.checkpoints import safe_load


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path):
    """Short form of kill_and_resume.py: SIGKILL, also while saving, and SIGTERM."""
    # the last signal may find the run at its end
    assert compare(tmp_path, steps=40, kills=5).startswith(("4 kills", "5 kills"))


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

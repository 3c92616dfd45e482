from __future__ import annotations

import logging
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb
from helpers.paths import ROOT
from helpers.trainers import write_dataset

from dens.fairchem1.config import inputs as preflight
from dens.fairchem1.config.inputs import check_inputs, keep_wandb_offline
from dens.settings import ConfigError

ANSWERS = preflight.answers
HERE = {"src": "there"}  # a folder with LMDB files


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("there/data.0000.lmdb", "one.lmdb", "frames/a.traj", "weights.pt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()
    return tmp_path


def run_config(dataset, mode="train", checkpoint="weights.pt"):
    return {"mode": mode, "dataset": dataset, "checkpoint": checkpoint}


@pytest.mark.parametrize(
    ("dataset", "mode"),
    [
        ({"train": HERE}, "train"),
        ({"train": HERE, "val": {"src": "one.lmdb"}, "test": None}, "train"),
        ([HERE, {"src": "one.lmdb"}], "train"),
        ({"train": HERE, "val": {"use_train_settings": False, **HERE}}, "validate"),
        ({"val": HERE}, "validate"),
        ({"test": HERE}, "predict"),
        ({"train": HERE, "relax": {"first_n": 3}}, "run-relaxations"),
        ({"train": {"src": "frames", "format": "ase_read"}, "val": {"src": "frames"}}, "train"),
        ({"train": {"src": ["frames", "one.lmdb"], "format": "ase_db"}}, "train"),
        ({"train": {"src": "frames/*.traj", "format": "ase_db"}}, "train"),
        ({"train": {"src": "postgresql://host/db", "format": "ase_db"}}, "train"),
    ],
)
def test_data_that_is_there_is_accepted(dataset, mode):
    check_inputs(run_config(dataset, mode))


def test_the_multitask_layout_is_left_to_fairchem():
    check_inputs({"mode": "train", "datasets": {}, "checkpoint": None})


@pytest.mark.parametrize(
    ("dataset", "mode", "message"),
    [
        (None, "train", "dataset must be a mapping with train, val, ..., got None"),
        ({"train": "there"}, "train", "dataset.train must be a mapping with src, got 'there'"),
        ({}, "train", "dataset.train.src is missing"),
        ({"src": "there"}, "train", "dataset.train.src is missing"),
        ({"train": HERE, "val": {}}, "validate", "dataset.val.src is missing: --mode validate"),
        ({"train": HERE}, "predict", "dataset.test.src is missing"),
        ({"train": HERE}, "run-relaxations", "dataset.relax.src is missing"),
        ({"train": {"src": "gone"}}, "train", "dataset.train.src = gone"),
        ([HERE, {"src": "gone"}], "train", "dataset.val.src = gone"),
        ({"train": {"src": "gone"}, "val": HERE}, "validate", "dataset.train.src = gone"),
        ({"train": {"src": "empty"}}, "train", "dataset.train.src = empty"),
        ({"train": {"src": ["frames", "gone"], "format": "ase_db"}}, "train", "src = gone;"),
        ({"train": HERE, "relax": {"src": "gone"}}, "train", "dataset.relax.src = gone"),
    ],
)
def test_missing_data_is_refused_in_one_line(dataset, mode, message):
    with pytest.raises(ConfigError) as error:
        check_inputs(run_config(dataset, mode))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_refusal_says_how_to_get_oc20_and_how_to_run_the_demo():
    dataset = {
        "train": {"src": "data/oc20/s2ef/2M/train"},
        "val": {"src": "data/oc20/s2ef/all/val_id/"},
        "test": {"src": "elsewhere"},
        "relax": {"src": "data/md17/aspirin/train"},
    }
    with pytest.raises(ConfigError) as error:
        check_inputs(run_config(dataset))
    message = str(error.value)
    for part in (
        "dens data download --task s2ef --split 2M --ref-energy --num-workers 8 "
        "--data-path data/oc20",
        "--split val_id --ref-energy --num-workers 8 --data-path data/oc20",
        "--dataset.test.src=PATH",
        "dens data md17 aspirin --download --out data/md17/aspirin",
        "dens data demo data/demo && fairchem main.py --config configs/oc20/eqv2_dens_demo.yml",
    ):
        assert part in message
    assert (ROOT / preflight._DEMO.split()[-1]).is_file()


@pytest.mark.parametrize(
    ("mode", "checkpoint", "message"),
    [
        ("validate", None, "--mode validate needs --checkpoint FILE"),
        ("train", "gone.pt", "--checkpoint gone.pt does not exist"),
    ],
)
def test_a_missing_checkpoint_is_refused(mode, checkpoint, message):
    with pytest.raises(ConfigError, match=message):
        check_inputs(run_config({"train": HERE, "val": HERE}, mode, checkpoint))


@pytest.fixture
def nobody(folder, monkeypatch):
    """An account without W&B login; what is set in the test is undone."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("WANDB_MODE", "")  # so that the value set below goes when the test ends
    del os.environ["WANDB_MODE"]
    wandb.teardown()
    monkeypatch.setattr(preflight, "answers", lambda *_: True)  # the server
    yield monkeypatch
    wandb.teardown()


KEY = "0123456789" * 4


def wandb_config(logger="wandb", is_debug=False):
    return {"logger": logger, "is_debug": is_debug, "run_dir": "runs", "timestamp_id": "now"}


@pytest.mark.parametrize(
    ("environ", "netrc", "config", "mode"),
    [
        ({}, "", wandb_config(), "offline"),
        ({}, "", wandb_config({"name": "wandb_singleton", "project": "p"}), "offline"),
        ({}, "machine example.org login a password b", wandb_config(), "offline"),
        ({}, "", wandb_config("tensorboard"), None),
        ({}, "", wandb_config({"name": "tensorboard"}), None),
        ({}, "", wandb_config(is_debug=True), None),
        ({"WANDB_API_KEY": KEY}, "", wandb_config(), None),
        ({"WANDB_MODE": "disabled"}, "", wandb_config(), "disabled"),
        ({"WANDB_MODE": "online"}, "", wandb_config(), "online"),
        ({}, f"machine api.wandb.ai login user password {KEY}", wandb_config(), None),
        (
            {"WANDB_BASE_URL": "https://wandb.example.org"},
            f"machine wandb.example.org login user password {KEY}",
            wandb_config(),
            None,
        ),
    ],
)
def test_wandb_goes_offline_only_without_login(environ, netrc, config, mode, nobody, caplog):
    caplog.set_level(logging.INFO)
    for name, value in environ.items():
        nobody.setenv(name, value)
    Path(".netrc").write_text(netrc)
    nobody.setattr("builtins.input", lambda *_: pytest.fail("asked the user"))
    keep_wandb_offline(config)
    assert os.environ.get("WANDB_MODE") == mode
    notices = [m for m in caplog.messages if "W&B" in m]
    assert len(notices) == (mode == "offline")


@pytest.mark.parametrize("answering", [False, True])
def test_wandb_goes_offline_in_seconds_where_the_server_does_not_answer(
    answering, nobody, caplog, free_port
):
    nobody.setattr(preflight, "answers", ANSWERS)
    nobody.setenv("WANDB_API_KEY", KEY)
    nobody.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port}")
    started = time.monotonic()
    if answering:
        with ThreadingHTTPServer(("127.0.0.1", free_port), BaseHTTPRequestHandler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            keep_wandb_offline(wandb_config())
            server.shutdown()
    else:
        keep_wandb_offline(wandb_config())
    assert time.monotonic() - started < 20
    assert os.environ.get("WANDB_MODE") == (None if answering else "offline")
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    said = f"W&B cannot be reached at http://127.0.0.1:{free_port}: this run stays offline. Later:"
    assert [said in message for message in warnings] == ([] if answering else [True])


def test_a_server_that_is_silent_does_not_answer(free_port):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", free_port))
        silent.listen()
        assert not preflight.answers(f"http://127.0.0.1:{free_port}", seconds=0.5)
    assert not preflight.answers("no address", seconds=0.5)


SUBSETS = [
    ({"first_n": 9}, {}, "first_n must be at most 8, the structures in", "train.first_n"),
    (
        {"sample_n": 9},
        {"use_train_settings": False},
        "sample_n must be at most 8, ",
        "train.sample",
    ),
    ({}, {"first_n": 9}, "first_n must be at most 8, the structures in", "val.first_n"),
    (
        {"train_split_settings": {"first_n": 9}},
        {},
        "first_n must be at most 8, the structures in",
        "train.train_split_settings.first_n",
    ),
    (
        {"first_n": 4},
        {"val_split_settings": {"first_n": 9}},
        "first_n must be at most 8, ",
        "val.val_split_settings.first_n",
    ),
    (
        {"first_n": 4, "train_split_settings": {"sample_n": 4}},
        {"use_train_settings": False},
        "first_n and sample_n exclude each other",
        "train",
    ),
    ({"first_n": 4}, {"sample_n": 4}, "first_n and sample_n exclude each other", "val"),
    ({"max_atoms": 3}, {}, "no structure is left in", "train.max_atoms"),
    ({"lin_ref": "gone.npz"}, {}, "there is no file gone.npz", "train.lin_ref"),
    (
        {"transforms": {"normalizer": {"energy": {"file": "gone.pt"}}}},
        {"use_train_settings": False},
        "there is no file gone.pt",
        "train.transforms.normalizer.energy.file",
    ),
]


@pytest.mark.parametrize(("train", "val", "message", "key"), SUBSETS, ids=lambda v: str(v)[:30])
def test_subsets_and_files_must_be_there(train, val, message, key, folder):
    src = write_dataset(folder / "data", n=8)
    splits = {"train": {"src": src, **train}, "val": {"src": src, **val}}
    with pytest.raises(ConfigError) as error:
        check_inputs(run_config(splits))
    lines = [line for line in str(error.value).splitlines() if f"(dataset.{key}" in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_subsets_that_fit_are_accepted(folder):
    src = write_dataset(folder / "data", n=8)
    check_inputs(run_config({"train": {"src": src, "first_n": 8}, "val": {"src": src}}))
    check_inputs(run_config({"train": {"src": src, "sample_n": 3, "max_atoms": 50}}))
    own = {"train_split_settings": {"first_n": 8}, "val_split_settings": {"first_n": 2}}
    check_inputs(run_config({"train": {"src": src, "first_n": 9, **own}, "val": {"src": src}}))


def test_an_offline_run_lies_where_the_notice_says(nobody, caplog):
    caplog.set_level(logging.INFO)
    keep_wandb_offline(wandb_config())
    logs = Path("runs/logs/wandb/now")  # fairchem's folder for this run
    logs.mkdir(parents=True)
    run = wandb.init(project="p", dir=logs, settings=wandb.Settings(silent=True))
    wandb.log({"a": 1})
    wandb.finish()
    assert run.offline
    (pattern,) = [m.split("wandb sync ")[1] for m in caplog.messages if "wandb sync" in m]
    (found,) = Path().glob(pattern)
    assert list(found.glob("*.wandb"))

"""Test that the configs under examples/ are valid and train a shrunken model."""

import copy
import os
import subprocess

import pytest
from fairchem.core.common.utils import load_config
from helpers.checkpoint_files import dens_trainer
from helpers.paths import ROOT
from helpers.trainers import MODEL

from dens.fairchem1.config.settle import settle
from dens.fairchem1.launch import launch, parse_args
from dens.settings import ConfigError

EXAMPLES = ROOT / "examples"
SHRUNKEN = ("num_layers", "sphere_channels", "attn_hidden_channels", "edge_channels")


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", ["finetune_demo.yml", "relax_demo.yml"])
def test_example_config(dataset, tmp_path, name):
    config, _, conflicts = load_config(str(EXAMPLES / name))
    assert not conflicts
    settle(copy.deepcopy(config))
    for key in SHRUNKEN:
        config["model"]["backbone"][key] = MODEL["backbone"][key]
    optim = {**config["optim"], "batch_size": 4, "num_workers": 0, "max_epochs": 1}
    optim["scheduler_params"] = {**optim["scheduler_params"], "warmup_epochs": 1.0}
    trainer = dens_trainer(
        dataset, tmp_path, config["model"], optim=optim, task=config.get("task", {})
    )
    trainer.train(disable_eval_tqdm=True)
    assert 0 < trainer.best_val_metric < 10


@pytest.mark.parametrize("status", [0, 1, 143])
def test_a_slurm_job_resumes_itself_after_a_stop(status, tmp_path):
    """With stand-ins for srun and scontrol, which write down how they are called."""
    for name, code in (("srun", status), ("scontrol", 0)):
        script = f'#!/bin/sh\necho "$0" "$@" >> {tmp_path}/calls\nexit {code}\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NAME": "dens", "SLURM_JOB_ID": "17", "SLURM_GPUS_ON_NODE": "4"}
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", EXAMPLES / "slurm.sh", "a.yml", "--amp", "--optim.lr=1"], env=env, check=False
    )
    assert done.returncode == status
    started, *requeued = (tmp_path / "calls").read_text().splitlines()
    assert requeued == [f"{tmp_path}/scontrol requeue 17"] * (status == 143)
    words = started.split()
    args, overrides = parse_args(words[words.index("fairchem") + 1 :])
    assert (args.config_yml.name, args.num_gpus, args.timestamp_id) == ("a.yml", 4, "dens-17")
    assert (args.amp, overrides) == (True, ["--optim.lr=1"])


def test_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"torchrun has started 2 .* with --num-gpus N"):
        launch(*parse_args(["--config", "a.yml"]))

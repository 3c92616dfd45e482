"""Test that the configs under examples/ are valid and train a shrunken model."""

import copy

import pytest
from fairchem.core.common.utils import load_config
from helpers.checkpoint_files import dens_trainer
from helpers.paths import ROOT
from helpers.trainers import MODEL

from dens.fairchem1.config.settle import settle

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

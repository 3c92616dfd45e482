"""The core needs torch and e3nn, and works where fairchem is not installed."""

import subprocess
import sys

import pytest
from helpers.hosts import MAJOR

SCRIPT = """
import sys
sys.modules["fairchem"] = None  # as where it is not installed
import torch
import dens
from dens import ForceEncoding, corrupt, dens_loss, denoising_metrics, parse_config
from dens import NoiseLevels, MoreRedConfig, RelaxSettings, relax_structures
from dens.relax.atoms.relaxer import Relaxer
from dens.random import make_generator

config = parse_config({"prob": 1.0, "denoising_coefficient": 10.0, "sigma": 0.1})
batch, natoms = torch.tensor([0, 0, 1]), torch.tensor([2, 1])
c = corrupt(torch.zeros(3, 3), batch, natoms, config, make_generator(0, 0, 0))
assert c.noise_mask.all()
encoded = ForceEncoding(lmax=2, channels=4)(torch.ones(3, 3), c.sigma[batch])
assert encoded.shape == (3, 9, 4)
try:
    dens.DeNSTrainer
except ImportError as error:
    assert "fairchem" in str(error)
else:
    raise AssertionError("a trainer without fairchem")
loaded = [name for name in sys.modules if name.startswith("fairchem.")]
assert not loaded, loaded
"""


def test_core_without_fairchem():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


REGISTERED = """
import dens
try:
    from fairchem.core.common.registry import registry
except ImportError:  # it needs what dens.fairchem1 supplies
    before = False
else:
    before = "dens" in registry.mapping["trainer_name_mapping"]
assert not before
import dens.fairchem1
from fairchem.core.common.registry import registry

assert registry.get_trainer_class("dens") is dens.DeNSTrainer
assert registry.get_model_class("dens_equiformer_v2_backbone") is dens.EquiformerV2Backbone
assert registry.get_dataset_class("dens_oc22_lmdb") is dens.OC22LmdbDataset
"""


@pytest.mark.skipif(MAJOR != "1", reason="the registry is that of fairchem-core 1.10")
def test_short_names_come_with_the_adapter():
    done = subprocess.run([sys.executable, "-c", REGISTERED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Test that the names that users' configs and checkpoints hold resolve."""

import subprocess
import sys

import pytest
from helpers.hosts import MAJOR

import dens

DOTTED = """
    DeNSTrainer DeNSMixin EquiformerV2Backbone EquiformerV2DeNS EnergyHead ForceHead NoiseHead
    StressHead
    OC22LmdbDataset load_calculator ConfigError DeNSConfig parse_config Corruption corrupt
    ForceEncoding dens_loss denoising_metrics NoiseLevels MoreRedConfig
    RelaxSettings relax_structures DeNSTrainEvalUnit DeNSUnitMixin
    ESCNBackbone ESCNNoiseHead ESENBackbone ESENNoiseHead
"""
HOSTS = {"dens.fairchem1": "1", "dens.fairchem2": "2"}
SHORT = """
import dens.fairchem1
from fairchem.core.common.registry import registry

registry.get_trainer_class("dens")
models = "equiformer_v2_backbone energy_head force_head noise_head stress_head equiformer_v2 "
models += "escn_backbone escn_noise_head esen_backbone esen_noise_head"
for name in models.split():
    registry.get_model_class(f"dens_{name}")
for name in ("dens_lmdb", "dens_oc22_lmdb"):
    registry.get_dataset_class(name)
"""


@pytest.mark.parametrize("name", DOTTED.split())
def test_dotted_name(name):
    host = next((HOSTS[room] for room in HOSTS if dens._HOME[name].startswith(room)), MAJOR)
    if host != MAJOR:
        with pytest.raises(ImportError, match=r"needs fairchem-core|No module named"):
            getattr(dens, name)
        return
    assert getattr(dens, name).__name__ == name
    assert name in dens.__all__


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="module 'dens' has no attribute 'Trainer'"):
        _ = dens.Trainer


@pytest.mark.skipif(MAJOR != "1", reason="the registry is that of fairchem-core 1.10")
def test_short_names_of_the_registry():
    """In a process of its own, where no other import can have registered them."""
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

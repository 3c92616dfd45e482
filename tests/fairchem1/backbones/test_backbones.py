"""Each backbone keeps its contract; those with gradient forces keep it twice."""

import copy
from typing import ClassVar

import pytest
import torch
from contracts.backbone import BackboneContract, build, corrupted, run
from fairchem.core.common import gp_utils
from helpers.backbones import SETTINGS, model_of
from helpers.structures import make_batch
from helpers.trainers import DENS, morered_config, trainer_config, write_dataset

import dens
from dens.fairchem1.backbones.families import EQUIFORMER_V2, ESCN, ESEN, FAMILIES
from dens.settings import ConfigError


class TestEquiformerV2(BackboneContract):
    family = EQUIFORMER_V2
    plain: ClassVar = {"fast": False}
    exact: ClassVar = {"use_gate_act": True, "use_grid_mlp": False}


class TestEquiformerV2WithStress(TestEquiformerV2):
    stress = True


class TestESCN(BackboneContract):
    """eSCN sums over points of spheres: the denser these are, the better it is equivariant."""

    family = ESCN
    exact: ClassVar = {"num_sphere_samples": 2000, "resolution": 40}
    tolerance = 1e-2


class TestESEN(BackboneContract):
    family = ESEN


class TestESENWithGradientForces(BackboneContract):
    family = ESEN
    gradient = True

    def test_forces_are_the_gradient_of_the_energy_of_the_corrupted_structure(self):
        """By finite differences, with the encoded forces held fixed."""
        batch = corrupted(make_batch(1))
        for name in ("pos", "cell", "sigma", "noise", "noise_forces"):
            batch[name] = batch[name].double()
        torch.set_default_dtype(torch.float64)
        try:
            model = build(self.model, torch.float64, use_pbc=False)
            forces = run(model, batch.clone())["forces"]
            for atom in (0, int(batch.noise_mask.nonzero()[0]), len(batch.pos) - 1):
                energies = []
                for step in (1e-5, -1e-5):
                    moved = batch.clone()
                    moved.pos[atom, 2] += step
                    energies.append(run(model, moved)["energy"].item())
                slope = (energies[0] - energies[1]) / 2e-5
                assert forces[atom, 2].item() == pytest.approx(-slope, rel=1e-5, abs=1e-8)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_atoms_without_neighbours_have_no_forces(self):
        model, batch = build(self.model), make_batch(1)
        batch.pos, batch.cell = 30 * batch.pos, 30 * batch.cell
        with torch.no_grad():  # as in validation
            out = run(model, batch)
        assert set(out) == self.outputs
        assert all((out[name] == 0).all() for name in self.outputs - {"energy"})


class TestESENWithGradientStress(TestESENWithGradientForces):
    stress = True

    def test_stress_is_the_gradient_of_the_energy_by_the_strain(self):
        """By finite differences, the cell periodic, in units of the energy over Å^3."""
        model, batch = build(self.model), make_batch(1)
        stress = run(model, batch.clone())["stress"].view(3, 3)
        volume = torch.linalg.det(batch.cell[0])
        for i, j in ((0, 0), (0, 1), (2, 1)):
            energies = []
            for size in (1e-3, -1e-3):
                strain = torch.zeros(3, 3)
                strain[i, j] = strain[j, i] = size if i == j else size / 2
                moved = batch.clone()
                moved.pos = batch.pos @ (torch.eye(3) + strain)
                moved.cell = batch.cell @ (torch.eye(3) + strain)
                energies.append(run(model, moved)["energy"].item())
            slope = (energies[0] - energies[1]) / (2e-3 * volume)
            assert stress[i, j].item() == pytest.approx(slope.item(), rel=1e-2, abs=1e-5)


def test_the_table_has_a_tiny_model_of_every_family():
    assert set(SETTINGS) == set(FAMILIES)
    for family in FAMILIES:
        classes = [name for name in family.head_names | {family.backbone} if "dens." in name]
        assert all(getattr(dens, name.removeprefix("dens.")) for name in classes)


# ---- refusals ------------------------------------------------------------------------------------


def refused(config, *fragments):
    with pytest.raises(ConfigError) as error:
        dens.DeNSTrainer(**config)
    assert "\n" not in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_parts_of_another_backbone_are_refused_by_name(dataset, family):
    """A stock backbone, no noise head, one of another family: each message names the right one."""
    config = trainer_config(dataset, model=model_of(family))
    stock = copy.deepcopy(config)
    stock["model"]["backbone"]["model"] = family.rows[0][1]
    refused(stock, f"would ignore optim.dens: use {family.backbone} (model.backbone.model)")
    headless = copy.deepcopy(config)
    del headless["model"]["heads"]["noise"]
    refused(headless, f"add noise: {{module: {family.noise_head}}}")
    other = FAMILIES[FAMILIES.index(family) - 1]
    config["model"]["heads"]["noise"]["module"] = other.noise_head
    refused(config, f"is a head of {other.title}, but the backbone is {family.title}: use one of")


def test_a_checkpoint_of_another_backbone_is_refused(dataset, tmp_path):
    from helpers.checkpoint_files import dens_trainer, save

    path = save(dens_trainer(dataset, tmp_path, model_of(ESEN)))
    trainer = dens.DeNSTrainer(**trainer_config(dataset, model=model_of(ESCN)))
    with pytest.raises(ConfigError, match="it holds an eSEN, and the config has an eSCN"):
        trainer.load_checkpoint(str(path))


def test_escn_names_a_batch_without_neighbours():
    model, batch = build(model_of(ESCN)), make_batch(1)
    batch.pos, batch.cell = 30 * batch.pos, 30 * batch.cell
    with pytest.raises(ValueError, match=r"no atom of a batch has a neighbour within cutoff = 4.0"):
        run(model, batch)


@pytest.mark.parametrize("family", [ESCN, ESEN], ids=lambda family: family.title)
def test_what_only_equiformer_v2_can_is_refused(dataset, family, monkeypatch):
    config = morered_config(dataset)
    config["model"]["backbone"] = {**model_of(family)["backbone"], "force_encoding": False}
    with pytest.raises(
        ConfigError, match=r"model.backbone.model must be dens.EquiformerV2Backbone"
    ):
        dens.MoreRedTrainer(**config)
    monkeypatch.setattr(gp_utils, "initialized", lambda: True)
    with pytest.raises(ConfigError, match="--gp-gpus needs EquiformerV2"):
        build(model_of(family))


@pytest.mark.parametrize("name", ["forces", "stress"])
def test_unequal_normalisers_of_gradients_are_refused(tmp_path, name):
    """Energy and forces divided by different numbers are no function and its gradient."""
    src = write_dataset(tmp_path / "data", virial=True)
    config = trainer_config(src, model=model_of(ESEN, gradient=True, stress=True), dens=DENS)
    scales = config["dataset"]["train"]["transforms"]["normalizer"]
    scales[name]["stdev"] = 2 * scales["energy"]["stdev"]
    refused(config, f"computes {name} as a gradient", f"2 for energy and 4 for {name}", "stdev")

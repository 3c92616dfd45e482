"""What every backbone keeps; a subclass names its family and how exactly it is equivariant."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from ase.stress import full_3x3_to_voigt_6_stress
from e3nn import o3
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.base import HydraModel
from helpers.backbones import model_of, stock_model_of
from helpers.checkpoint_files import dens_trainer, plain_trainer, save
from helpers.loops import loss_by_loop, one_step
from helpers.ranks import assert_same, gradients_with_fixed_frames, on_ranks
from helpers.stress_settings import PARTS, decomposed
from helpers.structures import make_batch
from helpers.trainers import DENS, trainer_config, write_dataset
from torch_geometric.data import Batch

from dens.data.store.records import data_to_atoms
from dens.denoising.config import parse_config
from dens.denoising.corruption import attach, corrupt
from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.backbones.families import Family
from dens.fairchem1.checkpoints.calculator import load_calculator
from dens.fairchem1.checkpoints.export import export_checkpoint
from dens.fairchem1.checkpoints.inspect import inspect_checkpoint
from dens.fairchem1.model.stress_head import as_stock
from dens.random import make_generator

setup_imports()
POSITIONS = ("pos", "cell", "forces", "noise", "noise_forces")
IRREPS = {
    "energy": "0e",
    "forces": "1o",
    "noise": "1o",
    "stress_isotropic": "0e",
    "stress_anisotropic": "2e",
}


def build(config: dict, dtype: torch.dtype = torch.float32, **backbone) -> HydraModel:
    config = copy.deepcopy({k: v for k, v in config.items() if k != "name"})
    config["backbone"].update(backbone)
    torch.manual_seed(0)
    return HydraModel(**config).to(dtype).eval()


def corrupted(batch, **settings):
    config = parse_config({**DENS, "prob": 1.0, **settings})
    generator = make_generator(0, 0, 0)
    c = corrupt(batch.pos, batch.batch, batch.natoms, config, generator, fixed=batch.fixed)
    attach(batch, c, batch.forces)
    return batch


def turning(name: str, rotation: torch.Tensor) -> torch.Tensor:
    """Return the matrix that turns the components of an output."""
    if name == "stress":
        return torch.kron(rotation, rotation)
    return o3.Irreps(IRREPS[name]).D_from_matrix(rotation)


def run(model, batch, seed=0):
    torch.manual_seed(seed)  # the frames of edges are random
    return model(batch)


class StepsKept(DeNSTrainer):
    """Trainer that keeps the checkpoint of every step."""

    def save(self, *args, **kwargs):
        path = super().save(*args, **kwargs)
        if path is not None:
            shutil.copy(path, Path(path).with_name(f"step{self.step}.pt"))
        return path


class BackboneContract:
    """Tests of one backbone.

    Attributes:
        family: of the backbone.
        gradient: whether forces are gradients of the energy.
        stress: whether the stress is predicted too: by a head, in two parts, or as a gradient.
        exact: settings with which it is as equivariant as ``tolerance`` says.
        tolerance: of float64 outputs when all is rotated, relative to the largest.
        plain: further settings, with which dens computes what fairchem does bit for bit.
    """

    family: Family
    gradient = False
    stress = False
    exact: ClassVar[dict] = {}
    tolerance = 1e-10
    plain: ClassVar[dict] = {}

    @property
    def model(self) -> dict:
        return model_of(self.family, gradient=self.gradient, stress=self.stress, **self.plain)

    @property
    def outputs(self) -> set[str]:
        stress = {"stress"} if self.gradient else set(PARTS)
        return {"energy", "forces"} | (stress if self.stress else set())

    def batch(self, n_structures: int) -> Batch:
        structures = make_batch(n_structures, virial=True).to_data_list()
        return Batch.from_data_list([decomposed(structure) for structure in structures])

    @pytest.fixture
    def dataset(self, tmp_path) -> str:
        return write_dataset(tmp_path / "train", virial=True)

    @pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
    def test_clean_batches_are_stock_bit_for_bit(self, training):
        ours, stock = build(self.model), build(stock_model_of(self.model))
        state = ours.state_dict()
        if "stress" in ours.output_heads:
            state = as_stock(state, "stress")
        missing, unexpected = stock.load_state_dict(state, strict=False)
        assert not missing
        assert {name.split(".")[1] for name in unexpected} == {"force_encoding", "noise"}
        batch = self.batch(3)
        if training:
            corrupted(batch, prob=0.0)
            ours.train(), stock.train()
        out, reference = run(ours, batch), run(stock, self.batch(3))
        assert set(out) == set(reference) == self.outputs
        for name in reference:
            if name in PARTS:  # whose head has other weights in dens
                torch.testing.assert_close(out[name], reference[name], rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(out[name], reference[name])

    def test_only_the_forces_of_corrupted_atoms_are_encoded(self):
        model, batch = build(self.model), corrupted(self.batch(2))
        reference = run(model, batch.clone())
        assert reference["noise"].shape == batch.pos.shape
        batch.forces[~batch.noise_mask] = 1e3
        out = run(model, batch.clone())
        assert all(torch.equal(out[name], reference[name]) for name in reference)
        batch.noise_forces = batch.noise_forces * 2
        out = run(model, batch.clone())
        assert set(out) == self.outputs | {"noise"}
        for name in out:
            assert not torch.equal(out[name], reference[name])

    def test_all_outputs_are_equivariant(self):
        batch = corrupted(self.batch(2))
        for name in ("sigma", *POSITIONS):
            batch[name] = batch[name].double()
        torch.set_default_dtype(torch.float64)
        try:
            model = build(self.model, torch.float64, **self.exact, use_pbc=False)
            out = run(model, batch.clone())
            rotation = o3.rand_matrix()
            other = batch.clone()
            for name in POSITIONS:
                other[name] = batch[name] @ rotation.T
            turned = run(model, other, seed=1)
            expected = {
                name: value.view(len(value), -1) @ turning(name, rotation).T
                for name, value in out.items()
            }
        finally:
            torch.set_default_dtype(torch.float32)
        assert set(expected) == self.outputs | {"noise"}
        for name, value in expected.items():
            error = (turned[name].view_as(value) - value).abs().max()
            assert error < self.tolerance * value.abs().max(), name

    @pytest.mark.parametrize("reduction", ["joint", "separate"])
    def test_loss_is_that_of_a_plain_loop(self, new_trainer, reduction):
        trainer = new_trainer(model=self.model, dens={**DENS, "reduction": reduction})
        batch = self.batch(5)
        out, loss = one_step(trainer, batch)
        assert 0 < (batch.sigma > 0).sum() < 5
        assert loss.item() == pytest.approx(loss_by_loop(trainer, out, batch), rel=1e-5)
        loss.backward()
        with_gradient = {n for n, p in trainer.model.named_parameters() if p.grad is not None}
        assert with_gradient == {n for n, p in trainer.model.named_parameters() if p.requires_grad}

    def test_every_parameter_has_a_gradient_in_a_clean_step(self, new_trainer):
        trainer = new_trainer(model=self.model, dens={**DENS, "prob": 0.0})
        _, loss = one_step(trainer, self.batch(2))
        loss.backward()
        for name, parameter in trainer.model.named_parameters():
            assert parameter.grad is not None or not parameter.requires_grad, name

    @pytest.mark.parametrize("corrupted", [[0, 1], []], ids=["corrupted", "clean"])
    def test_two_ranks_have_the_gradients_of_one(self, dataset, processes, free_port, corrupted):
        args = (dataset, [[0, 1, 2], [3, 4]], corrupted, self.model)
        everything = [[0, 1, 2, 3, 4]]
        reference = gradients_with_fixed_frames(0, dataset, everything, corrupted, self.model)
        for of_rank in on_ranks(processes, 2, free_port, gradients_with_fixed_frames, *args):
            assert_same(of_rank, reference, tolerance=1e-4)

    @pytest.mark.slow
    def test_a_resumed_run_ends_as_an_undisturbed_one(self, dataset, tmp_path):
        settings = {"run_dir": str(tmp_path), "timestamp_id": "run", "logger": "tensorboard"}
        optim = {"checkpoint_every": 1, "max_epochs": 2}
        config = trainer_config(dataset, model=self.model, optim=optim, is_debug=False, **settings)
        whole, rest = (StepsKept(**copy.deepcopy(config)) for _ in range(2))
        whole.train(disable_eval_tqdm=True)
        rest.load_checkpoint(str(tmp_path / "checkpoints" / "run" / "step2.pt"))
        assert rest.step == 2
        rest.train(disable_eval_tqdm=True)
        weights = rest.model.state_dict()
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, weights[name]), name

    @pytest.mark.slow
    def test_export_runs_in_the_stock_calculator(self, dataset, tmp_path):
        trainer = dens_trainer(dataset, tmp_path, self.model)
        trainer.train(disable_eval_tqdm=True)
        path, exported = save(trainer), tmp_path / "stock.pt"
        line = export_checkpoint(path, exported)
        names = "energy, forces, stress" if self.stress else "energy, forces"
        assert f"stock {self.family.title}, outputs {names}" in line
        table = inspect_checkpoint(path)
        settings = self.model["backbone"]
        for key in ("num_layers", "sphere_channels", "edge_channels", "hidden_channels"):
            if key in settings:
                assert any(row.split() == [key, str(settings[key])] for row in table.splitlines())
        assert {"lmax", "mmax"} <= {row.split()[0] for row in table.splitlines()}
        stock = OCPCalculator(checkpoint_path=exported, cpu=True, seed=0)
        own = load_calculator(path, cpu=True, fast=False)
        for structure in self.batch(2).to_data_list():
            atoms = data_to_atoms(structure)
            for calculator in (stock, own):
                torch.manual_seed(0)  # the frames of edges are random
                calculator.calculate(atoms, ["energy", "forces"], [])
            assert own.results["energy"] == pytest.approx(stock.results["energy"], rel=1e-6)
            np.testing.assert_allclose(
                own.results["forces"], stock.results["forces"], rtol=1e-5, atol=1e-7
            )
            assert ("stress" in own.results) == ("stress" in stock.results) == self.stress
            if self.stress:
                expected = full_3x3_to_voigt_6_stress(stock.results["stress"])
                np.testing.assert_allclose(own.results["stress"], expected, rtol=1e-4, atol=1e-6)

    def test_a_run_starts_from_a_plain_model(self, dataset, tmp_path):
        """Before the first step it predicts what the plain model does, and zero effect is new."""
        plain = plain_trainer(dataset, tmp_path, stock_model_of(self.model))
        trainer = DeNSTrainer(**trainer_config(dataset, model=self.model))
        trainer.load_checkpoint(str(save(plain)))
        assert trainer.step == 0
        assert (trainer.model.backbone.force_encoding.weight == 0).all()
        plain.model.eval(), trainer.model.eval()
        out, reference = run(trainer.model, self.batch(2)), run(plain.model, self.batch(2))
        for name in reference.keys() - {"stress_anisotropic"}:  # whose weights are others in dens
            torch.testing.assert_close(out[name], reference[name], rtol=1e-5, atol=1e-6)

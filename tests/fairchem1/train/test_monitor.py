"""Monitoring: shares of the gradient, and denoising on the validation set."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.trainers import DENS, EXACT_MODEL, trainer_config, write_dataset

from dens.denoising.config import parse_config
from dens.denoising.corruption import sample_draws_by_structure
from dens.denoising.objective import DeNSObjective
from dens.fairchem1 import DeNSTrainer
from dens.random import Stream
from dens.runs.monitor.settings import parse_monitor
from dens.runs.monitor.training import TrainingMonitor
from dens.settings import ConfigError

LADDER = {"sigma": None, "sigma_low": 0.01, "sigma_high": 0.16, "num_sigmas": 5}


def make_monitor(src: str, **settings) -> TrainingMonitor:
    optim = {"watch": settings}
    trainer = DeNSTrainer(**trainer_config(src, model=EXACT_MODEL, optim=optim))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # some start at zero
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    trainer.ema.shadow_params = [1.1 * p.detach() for p in trainer.model.parameters()]
    trainer.step, trainer.epoch = 4, 1.0
    return trainer.make_monitor()


def validate(monitor: TrainingMonitor):
    return monitor.validation(monitor.host.val_loader.dataset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (3, "optim.watch must be a mapping of settings, got 3"),
        ({"denoising_sigma": [0.1]}, "did you mean denoising_sigmas?"),
        ({"denoising_structures": -1}, "denoising_structures must be an integer >= 0, or null"),
        ({"denoising_sigmas": [0.1, 0]}, "denoising_sigmas must be a list of numbers > 0, or null"),
        ({"denoising_sigmas": []}, "got [] (optim.watch.denoising_sigmas)"),
        ({"figures_every": 1.5}, "figures_every must be an integer >= 0, got 1.5"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError) as error:
        parse_monitor({"watch": settings})
    assert message in str(error.value)


def test_levels_and_number_of_structures():
    settings = parse_monitor({})
    fixed, ladder = parse_config(DENS), parse_config({**DENS, **LADDER})
    assert settings.sigmas(DeNSObjective(fixed)) == [0.05, 0.1, 0.2]
    assert settings.sigmas(DeNSObjective(ladder)) == pytest.approx([0.01, 0.04, 0.16])
    # 5 % of an evaluation of 25,000, for six passes that cost a little more each
    assert 150 <= settings.structures(25_000, 6) <= 208
    assert settings.structures(10, 6) == 1
    assert parse_monitor({"watch": {"denoising_structures": 64}}).structures(50, 6) == 50


def test_shares_of_the_gradient_leave_the_step_alone(dataset):
    monitor = make_monitor(dataset, gradients_every=2)
    trainer, logged = monitor.host, {}
    trainer.log = lambda values, split: logged.update(values)
    trainer.model.train()
    batch = next(iter(trainer.train_loader))
    out = trainer._forward(batch)
    terms = trainer._loss_terms(out, batch)
    monitor.gradients(terms)
    backbone = list(trainer._unwrapped_model.backbone.parameters())
    norms = {}
    for name, term in terms.items():
        trainer.model.zero_grad()
        term.backward(retain_graph=True)
        squares = [p.grad.square().sum() for p in backbone if p.grad is not None]
        norms[name] = math.sqrt(sum(squares))
    shares = {f"gradient_share_{n}": norm / sum(norms.values()) for n, norm in norms.items()}
    assert min(shares.values()) > 0
    assert logged == pytest.approx(shares, rel=1e-4)
    logged.clear()
    trainer.step = 5
    monitor.gradients(terms)
    assert logged == {}


def test_errors_agree_with_a_plain_loop(dataset):
    """The loop denoises structure by structure, with noise from the seed and the number."""
    monitor = make_monitor(dataset, denoising_structures=4, denoising_sigmas=[0.1, 0.2])
    trainer = monitor.host
    errors, _ = validate(monitor)
    trainer.ema.copy_to()
    for sigma in (0.1, 0.2):
        for hidden, end in ((False, ""), (True, "/no_forces")):
            pairs, energies = [], []
            for number in (0, 2, 5, 7):  # of 8, evenly
                batch = trainer.collater([trainer.val_dataset[number]])
                streams = [Stream.VALIDATION.generator(0, number)]
                whole = Stream.VALIDATION.generator(0)
                draws = sample_draws_by_structure(batch.natoms, streams, whole)
                config = trainer.dens.model_copy(update={"prob": 1.0, "sigma": sigma})
                DeNSObjective(config).apply(batch, draws, trainer.progress)
                if hidden:
                    batch.noise_forces = 0 * batch.noise_forces
                with torch.no_grad(), torch.random.fork_rng():
                    trainer.model.eval()
                    out = trainer.forward_micro_batch(batch)
                mask = batch.noise_mask
                pairs.append((0.1 * out["noise"][mask], batch.noise[mask]))
                if mask.any():
                    predicted = trainer._denorm_preds("energy", out["energy"], batch)
                    energies.append((predicted.view(-1) - batch.energy).abs())
            pred, true = (torch.cat(column) for column in zip(*pairs, strict=True))
            expected = {
                "pos_mae": (pred - true).abs().mean(),
                "pos_cosine": torch.cosine_similarity(pred, true).mean(),
                "pos_explained_variance": 1 - (pred - true).square().sum() / true.square().sum(),
                "energy_mae": torch.cat(energies).mean(),
            }
            for name, value in expected.items():
                found = errors[f"denoising_{name}/sigma={sigma:.2f}{end}"]
                assert found == pytest.approx(value.item(), rel=1e-3, abs=1e-5), (name, sigma, end)
    assert len(errors) == 16
    shown, concealed = (errors[f"denoising_pos_mae/sigma=0.20{end}"] for end in ("", "/no_forces"))
    assert abs(shown - concealed) > 1e-4 * shown


def test_validation_leaves_no_trace(dataset):
    monitor = make_monitor(dataset, denoising_structures=4)
    trainer = monitor.host
    trainer.model.train()
    assert trainer.ema is not None
    weights = copy.deepcopy(trainer.model.state_dict())
    random = torch.get_rng_state()
    first, figures = validate(monitor)
    assert figures is None  # a debug run has no folder for them
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), random)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    torch.manual_seed(99)
    second, _ = validate(monitor)
    assert first == second
    assert {len(trainer.val_dataset[i].keys()) for i in range(8)} == {len(trainer.val_dataset[0])}


def _errors_of_rank(rank: int, port: int, src: str, results) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    results[rank], _ = validate(make_monitor(src, denoising_structures=4))
    dist.destroy_process_group()


def test_two_ranks_measure_the_same_errors_as_one(dataset, free_port):
    expected, _ = validate(make_monitor(dataset, denoising_structures=4))
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_errors_of_rank, (free_port, dataset, results), nprocs=2)
        for rank in range(2):
            assert results[rank] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_every_structure_is_corrupted_whatever_training_excludes(dataset):
    """Including after early_epochs, and if the validation set lacks the fields of an exclusion."""
    monitor = make_monitor(dataset, denoising_structures=4)
    change = {"exclude_md": True, "max_stress_norm": 1.0, "early_epochs": 1, "prob": 0.25}
    expected, _ = validate(monitor)
    monitor.host.epoch = 2.0
    monitor.host.dens = monitor.host.dens.model_copy(update=change)
    assert validate(monitor)[0] == expected


def test_no_dens_means_no_denoising(tmp_path):
    src = write_dataset(tmp_path / "few", n=2)
    monitor = make_monitor(src, denoising_structures=0)
    assert validate(monitor) == ({}, None)
    monitor = make_monitor(src)
    monitor.host.dens = monitor.host.dens.model_copy(update={"prob": 0.0})
    assert validate(monitor) == ({}, None)

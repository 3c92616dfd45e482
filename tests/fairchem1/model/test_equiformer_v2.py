"""Test equality with stock EquiformerV2 in evaluation, and symmetries when corrupted."""

import pytest
import torch
from contracts.backbone import build, corrupted, run
from e3nn import o3
from fairchem.core.common.utils import radius_graph_pbc, setup_imports
from helpers.structures import make_batch
from helpers.trainers import BACKBONE, MODEL, STOCK_MODEL

import dens
from dens.settings import ConfigError

setup_imports()

EXACT = {"use_gate_act": True, "use_grid_mlp": False}  # without the S2 grid's discretisation


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evaluation_is_stock_bit_for_bit(seed):
    ours = build(MODEL, max_neighbors=12, fast=False)
    stock = build(STOCK_MODEL, max_neighbors=12)
    missing, unexpected = stock.load_state_dict(ours.state_dict(), strict=False)
    assert not missing
    assert all(k.startswith(("backbone.force_encoding", "output_heads.noise")) for k in unexpected)
    executed = []
    ours.output_heads["noise"].force_block.register_forward_hook(lambda *a: executed.append(1))

    batch = make_batch(3, seed)
    out, reference = run(ours, batch), run(stock, batch)
    assert set(out) == set(reference) == {"energy", "forces"}
    for name in reference:
        assert torch.equal(out[name], reference[name])
    assert not executed

    run(ours, corrupted(make_batch(3, seed)))
    assert executed


def test_training_mode_without_corruption_is_stock_too():
    ours, stock = build(MODEL, fast=False).train(), build(STOCK_MODEL).train()
    stock.load_state_dict(ours.state_dict(), strict=False)
    batch = make_batch(3)
    corrupted(batch, prob=0.0)
    out, reference = run(ours, batch), run(stock, make_batch(3))
    assert all(torch.equal(out[name], reference[name]) for name in reference)


def test_the_fast_path_is_the_default():
    assert build(MODEL).backbone.fast
    assert build(MODEL, fast=True).backbone.fast
    assert not build(MODEL, fast=False).backbone.fast


def test_encoding_is_added_to_the_first_node_embedding():
    """The hook adds the encoding to the element embedding, for corrupted atoms only."""
    model = build(MODEL, num_layers=0)
    batch = corrupted(make_batch(2))
    mask = batch.noise_mask
    seen = []
    model.backbone.norm.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with torch.no_grad():
        run(model, batch)
        encoded = model.backbone.force_encoding(batch.noise_forces, torch.zeros(len(mask)))
        batch.noise_mask, batch.corrupted = torch.zeros_like(mask), False
        run(model, batch)
    difference = seen[0] - seen[1]
    torch.testing.assert_close(difference, encoded, rtol=0, atol=1e-6)
    assert (difference[~mask] == 0).all()


def test_forces_of_clean_atoms_do_not_reach_a_corrupted_forward_pass():
    model, batch = build(MODEL), corrupted(make_batch(2))
    reference = run(model, batch)
    batch.forces[~batch.noise_mask] = 1e3
    out = run(model, batch)
    assert all(torch.equal(out[name], reference[name]) for name in reference)
    batch.noise_forces = batch.noise_forces * 2
    assert not torch.allclose(run(model, batch)["noise"], reference["noise"])


def with_edges(batch, dtype):
    """Add edges computed in single precision, the only one of fairchem's search."""
    batch.edge_index, batch.cell_offsets, batch.neighbors = radius_graph_pbc(batch, 4.0, 30, True)
    for name in ("pos", "cell", "forces"):
        batch[name] = batch[name].to(dtype)
    return batch


def transformed(batch, rotation):
    other = batch.clone()
    for name in ("pos", "cell", "forces", "noise", "noise_forces"):
        other[name] = (batch[name].double() @ rotation.T).to(batch.pos.dtype)
    return other


def assert_equivariant(out, other, rotation, tolerance):
    torch.testing.assert_close(other["energy"], out["energy"], rtol=tolerance, atol=tolerance)
    for name in ("forces", "noise"):
        expected = out[name].double() @ rotation.T
        assert (other[name] - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("dtype", "settings", "tolerance"),
    [(torch.float32, EXACT, 2e-4), (torch.float64, EXACT, 1e-10), (torch.float32, {}, 1e-2)],
    ids=["float32", "float64", "S2 grid, float32"],
)
def test_equivariance_of_energy_forces_and_noise(dtype, settings, tolerance):
    """Rotating pos, cell and forces rotates forces and noise; clusters in double precision."""
    batch = make_batch(3)
    if dtype == torch.float64:  # fairchem rounds periodic offsets to single precision
        batch.cell = 40 * torch.eye(3).repeat(3, 1, 1)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = build(MODEL, dtype, otf_graph=False, grid_resolution=18, **settings)
        torch.set_default_dtype(torch.float32)
        batch = corrupted(with_edges(batch, dtype))
        torch.set_default_dtype(dtype)
        with torch.no_grad():
            out = run(model, batch)
            for rotation in o3.rand_matrix(3, dtype=torch.float64):
                other = run(model, transformed(batch, rotation), seed=1)
                assert_equivariant(out, other, rotation, tolerance)
    finally:
        torch.set_default_dtype(previous)


def test_translation_and_periodic_images():
    # fairchem takes atoms to be wrapped; a large cutoff lets it look one cell further, and the
    # number of neighbours keeps the edges short
    model, batch = build(MODEL, **EXACT, max_radius=6.0), corrupted(make_batch(3))
    with torch.no_grad():
        out = run(model, batch)
        moved = batch.clone()
        moved.pos = batch.pos + torch.tensor([0.7, -1.3, 0.4])
        wrapped = batch.clone()
        images = torch.randint(0, 2, (len(batch.pos), 3)).float()
        images[:, 2] = 0
        wrapped.pos = batch.pos + torch.einsum("nk,nkx->nx", images, batch.cell[batch.batch])
        for other in (run(model, moved), run(model, wrapped)):
            for name in out:
                scale = out[name].abs().max()
                assert (other[name] - out[name]).abs().max() < 2e-4 * scale


def test_sigma_encoding_and_no_force_encoding():
    model = build(MODEL, sigma_encoding=True)
    batch = corrupted(make_batch(2))
    reference = run(model, batch)["noise"]
    batch.sigma = batch.sigma * 2
    assert not torch.allclose(run(model, batch)["noise"], reference)

    model = build(MODEL, force_encoding=False)
    reference = run(model, batch)["noise"]
    batch.noise_forces = batch.noise_forces * 2
    assert torch.equal(run(model, batch)["noise"], reference)


def test_flat_model_is_the_hydra_model():
    torch.manual_seed(0)
    flat = dens.EquiformerV2DeNS(**BACKBONE).eval()
    model = build(MODEL)
    assert {k: v.shape for k, v in flat.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    flat.load_state_dict(model.state_dict())
    out, reference = run(flat, make_batch(2)), run(model, make_batch(2))
    assert all(torch.equal(out[name], reference[name]) for name in reference)


def test_several_resolutions_and_contradictions_are_refused():
    with pytest.raises(ConfigError, match=r"lmax_list must have one entry for DeNS, got \[2, 1\]"):
        dens.EquiformerV2Backbone(**{**BACKBONE, "lmax_list": [2, 1], "mmax_list": [2, 1]})
    with pytest.raises(ConfigError, match="sigma_encoding needs force_encoding"):
        dens.EquiformerV2Backbone(**BACKBONE, force_encoding=False, sigma_encoding=True)

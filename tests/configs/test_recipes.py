"""Every recipe under configs/ loads, trains a shrunken model, and has the published values."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import ase.db
import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from helpers.paths import CONFIGS
from helpers.stressed import some_frames, write_frames
from helpers.structures import make_structure

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.convert.md17 import convert_md17
from dens.data.sources.md17 import MOLECULES
from dens.data.store.lmdb import LmdbWriter
from dens.data.store.records import add_start, atoms_to_data, data_to_atoms

FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yml"))

# sizes of the shrunken model
SHRUNKEN = {
    "num_layers": 1,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "edge_channels": 8,
    "grid_resolution": 8,
    "lmax_list": [2],
    "mmax_list": [2],
    "max_radius": 4.0,
    "max_neighbors": 8,
    "hidden_channels": 8,
    "num_sphere_samples": 16,
    "cutoff": 4.0,
    "lmax": 2,
    "mmax": 2,
}


def load(name: str) -> dict:
    from fairchem.core.common.utils import load_config

    config, _, conflicts = load_config(str(CONFIGS / name))
    assert not conflicts
    return config


def includes(name: str) -> list[str]:
    """Return the included files of a config, relative to configs/."""
    names = yaml.safe_load((CONFIGS / name).read_text()).get("includes", [])
    paths = ((CONFIGS / name).parent / include for include in names)
    return [str(path.resolve().relative_to(CONFIGS.resolve())) for path in paths]


def is_complete(name: str) -> bool:
    return {"src", "format"} <= set(load(name).get("dataset", {}).get("train", {}))


RECIPES = [name for name in FILES if is_complete(name) and "trainer" in load(name)]


def test_parts_belong_to_a_recipe():
    used = {include for name in FILES for include in includes(name)}
    assert not set(FILES) - set(RECIPES) - used
    groups = {Path(name).parts[0] for name in RECIPES}
    assert groups == {"oc20", "oc22", "md17", "mptrj", "omat24", "qm7", "qm7x", "qm9"}
    assert len(RECIPES) >= 4 * len(MOLECULES) + 8


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """Make a folder with data where the recipes look for them."""
    root = tmp_path_factory.mktemp("workplace")
    for name in RECIPES:
        for split in load(name)["dataset"].values():
            for src in split["src"] if isinstance(split["src"], list) else [split["src"]]:
                if not (root / src).exists():
                    make_data(root, Path(src))
    coeff = np.zeros(100)
    coeff[[8, 29]] = -6.66451126, -2.72318125
    linref = root / "data" / "oc22" / "linref"
    linref.mkdir(parents=True)
    np.savez(linref / "oc22_linfit_coeffs.npz", coeff=coeff)
    return root


def make_data(root: Path, src: Path) -> None:
    if src.parts[1] == "md17":
        (molecule,) = (m for m in MOLECULES if m.name == src.parts[2])
        make_md17(root, molecule)
        return
    if src.parts[1] in ("qm7", "qm7x", "qm9", "demo_relaxed"):
        make_relaxed(root / src, is_open=src.parts[1] != "demo_relaxed")
        return
    if src.parts[1] in ("mptrj", "omat24", "demo_bulk"):
        make_crystals_in(root / src, as_database=src.parts[1] == "omat24")
        return
    rng = np.random.default_rng(0)
    with LmdbWriter(root / src) as writer:
        for i in range(4):
            data = make_structure(rng, sid=i)
            data.y, data.force = data.energy, data.forces
            del data.energy, data.forces
            if src.parts[1] == "oc22":
                data.y, data.nads, data.oc22 = data.y - 100, 1, 1
            elif "md" in str(src):
                data.md = i % 2
            writer.write(data)


@cache
def crystals():
    return some_frames(1, 4)


def make_crystals_in(folder: Path, *, as_database: bool) -> None:
    """Write crystals with stress: LMDB, or a database of ASE, one file in a folder."""
    frames = crystals()
    if not as_database:
        write_frames(folder, frames)
        return
    folder.mkdir(parents=True)
    with ase.db.connect(str(folder / "part.db")) as database:
        for frame in frames:
            labels = {"energy": frame.energy, "forces": frame.forces}
            stress = full_3x3_to_voigt_6_stress(frame.stress)
            frame.atoms.calc = SinglePointCalculator(frame.atoms, **labels, stress=stress)
            database.write(frame.atoms)
    np.savez(folder / "metadata.npz", natoms=[len(frame.atoms) for frame in frames])


def make_relaxed(folder: Path, *, is_open: bool) -> None:
    """Write structures without labels, with the positions that they were relaxed from."""
    rng = np.random.default_rng(0)
    with LmdbWriter(folder) as writer:
        for i in range(4):
            slab = data_to_atoms(make_structure(rng))
            atoms = molecule("CH3OH") if is_open else slab
            data = atoms_to_data(atoms, sid=i, fid=0, labels=False)
            add_start(data, atoms.positions + rng.normal(scale=0.1, size=atoms.positions.shape))
            writer.write(data)


def make_md17(root: Path, molecule) -> None:
    rng = np.random.default_rng(0)
    numbers = {"H": 1, "C": 6, "N": 7, "O": 8}
    z = [numbers[symbol] for symbol, n in molecule.composition.items() for _ in range(n)]
    source = root / f"{molecule.name}.npz"
    pos, energy = 3 * rng.normal(size=(12, len(z), 3)), rng.normal(size=12)
    np.savez(source, R=pos, E=energy, F=rng.normal(size=pos.shape), z=z)
    out = root / "data" / "md17" / molecule.name
    convert_md17(molecule.name, source, out, n_train=4, n_val=4)


def shrink(config: dict) -> dict:
    config = copy.deepcopy(config)
    backbone = config["model"]["backbone"]
    backbone.update({key: value for key, value in SHRUNKEN.items() if key in backbone})
    small = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "max_epochs": 1}
    config["optim"].update(small)
    config["optim"]["scheduler_params"]["warmup_epochs"] = 1
    config["optim"].pop("eval_every", None)
    for split in config["dataset"].values():
        if isinstance(split["src"], list):
            split["src"] = split["src"][:1]
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_a_step(workplace, monkeypatch, name):
    from fairchem.core.common.registry import registry

    from dens.fairchem1.config.inputs import check_inputs
    from dens.fairchem1.config.settle import settle

    monkeypatch.chdir(workplace)
    config = load(name)
    settle(config)
    check_inputs({**config, "mode": "train"})
    config = shrink(config)
    trainer = registry.get_trainer_class(config["trainer"])(
        task={},
        model=config["model"],
        outputs=config["outputs"],
        dataset=config["dataset"],
        optimizer=config["optim"],
        loss_functions=config["loss_functions"],
        evaluation_metrics=config["evaluation_metrics"],
        identifier="",
        local_rank=0,
        is_debug=True,
        cpu=True,
        seed=0,
    )
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 1
    assert np.isfinite(trainer.best_val_metric)
    after = trainer.model.parameters()
    changed = [not a.equal(b) for a, b in zip(before, after, strict=True)]
    assert sum(changed) > len(changed) / 2


# ---- values --------------------------------------------------------------------------------------

# arXiv:2403.09549: layers, lmax, mmax; lr, epochs; lambda_E, lambda_F; clipping, drop path
PLAIN = {
    "oc20/eqv2": (12, 6, 2, 2e-4, 12, 2, 100, 100, 0.05),
    "oc20/eqv2_30ep": (12, 6, 2, 4e-4, 30, 2, 100, 100, 0.05),
    "oc20/eqv2_allmd": (20, 6, 3, 4e-4, 2, 4, 100, 100, 0.1),
    "oc22/eqv2": (18, 6, 2, 2e-4, 6, 4, 100, 50, 0.1),
}
# p_DeNS, r_DeNS, sigma (Å), lambda_DeNS
DENS = {
    "oc20/eqv2_dens": (0.5, 0.5, 0.1, 10),
    "oc20/eqv2_dens_30ep": (0.5, 0.5, 0.1, 10),
    "oc20/eqv2_dens_allmd": (0.125, 0.25, 0.1, 15),
    "oc22/eqv2_dens": (0.5, 0.5, 0.15, 25),
}
SHARED = {
    "sphere_channels": 128,
    "attn_hidden_channels": 64,
    "num_heads": 8,
    "attn_alpha_channels": 64,
    "attn_value_channels": 16,
    "ffn_hidden_channels": 128,
    "norm_type": "layer_norm_sh",
    "grid_resolution": 18,
    "edge_channels": 128,
    "max_radius": 12.0,
    "max_neighbors": 20,
    "alpha_drop": 0.1,
    "weight_init": "uniform",
}
# lambda_E, lambda_F, lr at lmax 2, p_DeNS, sigma (Å)
MD17 = {
    "aspirin": (1, 80, 5e-4, 0.25, 0.05),
    "benzene": (1, 80, 1e-4, 0.25, 0.05),
    "ethanol": (1, 80, 5e-4, 0.25, 0.05),
    "malonaldehyde": (1, 100, 5e-4, 0.25, 0.05),
    "naphthalene": (2, 20, 5e-4, 0.25, 0.05),
    "salicylic": (1, 80, 5e-4, 0.25, 0.05),
    "toluene": (1, 80, 5e-4, 0.125, 0.025),
    "uracil": (1, 20, 5e-4, 0.25, 0.05),
}


def weights(config: dict) -> tuple:
    energy, forces = config["loss_functions"]
    assert (energy["energy"]["fn"], forces["forces"]["fn"]) == ("mae", "l2mae")
    return energy["energy"]["coefficient"], forces["forces"]["coefficient"]


@pytest.mark.parametrize("name", PLAIN)
def test_published_values_of_oc20_and_oc22(name):
    config = load(f"{name}.yml")
    backbone, optim = config["model"]["backbone"], config["optim"]
    (lmax,), (mmax,) = backbone["lmax_list"], backbone["mmax_list"]
    found = (backbone["num_layers"], lmax, mmax, optim["lr_initial"], optim["max_epochs"])
    found += (*weights(config), optim["clip_grad_norm"], backbone["drop_path_rate"])
    assert found == PLAIN[name]
    assert {key: backbone[key] for key in SHARED} == SHARED
    assert backbone["enforce_max_neighbors_strictly"] == name.startswith("oc20")
    assert optim["batch_size"] == 4
    assert optim["optimizer_params"] == {"weight_decay": 1e-3}
    assert optim["ema_decay"] == 0.999
    warmup = 0.01 if name == "oc20/eqv2_allmd" else 0.1
    assert optim["scheduler_params"] == {
        "lambda_type": "cosine",
        "warmup_factor": 0.2,
        "warmup_epochs": warmup,
        "lr_min_factor": 0.01,
    }
    normalizer = config["dataset"]["train"]["transforms"]["normalizer"]
    if name.startswith("oc20"):
        assert normalizer["energy"] == {"mean": -0.7554450631141663, "stdev": 2.887317180633545}
        assert normalizer["forces"] == {"mean": 0.0, "stdev": 2.887317180633545}
    else:
        assert normalizer["energy"] == {"mean": 0.0, "stdev": 25.119809935106424}
        assert normalizer["forces"] == {"mean": 0.0, "stdev": 0.14759646356105804}
        assert "lin_ref" in config["dataset"]["train"]


@pytest.mark.parametrize("name", DENS)
def test_published_dens_of_oc20_and_oc22(name):
    prob, ratio, sigma, coefficient = DENS[name]
    expected = {
        "prob": prob,
        "corrupt_ratio": ratio,
        "sigma": sigma,
        "denoising_coefficient": coefficient,
        "granularity": "batch",
        "reduction": "joint",
    }
    if name == "oc20/eqv2_dens_allmd":
        expected["exclude_md"] = True
    assert load(f"{name}.yml")["optim"]["dens"] == expected


@pytest.mark.parametrize("molecule", MD17)
def test_published_values_of_md17(molecule):
    energy, forces, lr, prob, sigma = MD17[molecule]
    for lmax, suffix in ((2, ""), (3, "_l3")):
        for recipe in ("eqv2", "eqv2_dens"):
            config = load(f"md17/{molecule}/{recipe}{suffix}.yml")
            backbone, optim = config["model"]["backbone"], config["optim"]
            assert weights(config) == (energy, forces)
            assert optim["lr_initial"] == (lr if lmax == 2 else 2e-4)
            assert optim["max_epochs"] == (1500 if lmax == 2 else 2000)
            assert optim["batch_size"] == 8
            assert "clip_grad_norm" not in optim
            assert backbone["drop_path_rate"] == 0
            assert (backbone["num_layers"], backbone["lmax_list"]) == (6, [lmax])
            assert backbone["use_pbc"] is False
        assert optim["dens"] == {
            "prob": prob,
            "corrupt_ratio": 0.25,
            "sigma": sigma,
            "denoising_coefficient": 5,
            "denoising_coefficient_end": 0,
            "reduction": "separate",
            "granularity": "batch",
        }


LADDER = "oc20/eqv2_dens_relax_demo.yml"
CLEAN_END = "oc20/eqv2_dens_clean_end.yml"
S2EF_HEADS = ("energy", "forces", "noise")
# fairchem_core-1.10.0: layers, lmax, mmax; lr, epochs; energy, forces, stress; batch
BULK = {
    "mptrj/eqv2": (8, 4, 2, 2e-4, 150, 5, 20, 5, 5, 4),
    "mptrj/eqv2_86m": (10, 6, 4, 2e-4, 150, 2.5, 20, 5, 5, 8),
    "mptrj/eqv2_153m": (20, 6, 3, 2e-4, 150, 2.5, 20, 5, 5, 8),
    "omat24/eqv2": (8, 4, 2, 6e-4, 2, 2.5, 20, 5, 5, 8),
}


@pytest.mark.parametrize("name", BULK)
def test_published_values_of_mptrj_and_omat24(name):
    config = load(f"{name}.yml")
    backbone, optim = config["model"]["backbone"], config["optim"]
    (lmax,), (mmax,) = backbone["lmax_list"], backbone["mmax_list"]
    found = (backbone["num_layers"], lmax, mmax, optim["lr_initial"], optim["max_epochs"])
    terms = [(name, info) for term in config["loss_functions"] for name, info in term.items()]
    assert [(name, info["fn"]) for name, info in terms] == [
        ("energy", "per_atom_mae"),
        ("forces", "l2mae"),
        ("stress_isotropic", "mae"),
        ("stress_anisotropic", "mae"),
    ]
    found += tuple(info["coefficient"] for _, info in terms)
    assert (*found, optim["batch_size"]) == BULK[name]
    assert {key: backbone[key] for key in SHARED} == SHARED
    assert (backbone["max_num_elements"], backbone["drop_path_rate"]) == (96, 0.1)
    assert optim["scheduler_params"]["warmup_epochs"] == (0.1 if "mptrj" in name else 0.01)
    assert config["model"]["heads"]["stress"]["module"] == "rank2_symmetric_head"


@pytest.mark.parametrize("name", [name for name in BULK if "mptrj" in name])
def test_published_dens_of_mptrj(name):
    config = load(f"{name.replace('eqv2', 'eqv2_dens')}.yml")
    assert config["optim"]["dens"] == {
        "prob": 0.5,
        "corrupt_ratio": None,
        "sigma": 0.1,
        "denoising_coefficient": 10,
        "granularity": "batch",
        "reduction": "joint",
    }


@pytest.mark.parametrize(
    "name",
    [name for name in RECIPES if "dens" in Path(name).name and name not in (LADDER, CLEAN_END)],
)
def test_baselines_differ_in_dens_only(name):
    path = Path(name)
    plain = load(str(path.with_name(path.name.replace("_dens", ""))))
    config = load(name)
    assert plain["trainer"] == "equiformerv2_forces"
    assert config.pop("trainer") == "dens.DeNSTrainer"
    config["optim"].pop("watch", None)  # does not change training
    del config["optim"]["dens"], plain["trainer"]
    for model in (config["model"], plain["model"]):
        heads = model.pop("heads")
        model["other heads"] = {k: v for k, v in heads.items() if k not in S2EF_HEADS}
    for model in (config["model"], plain["model"]):
        model["backbone"].pop("force_encoding", None)
        model["backbone"].pop("fast", None)  # the same model and results, computed faster
        model["backbone"].pop("model")
    assert config == plain


def test_the_clean_end_is_all_that_differs_from_the_published_recipe():
    config = load(CLEAN_END)
    assert config["optim"]["dens"].pop("clean_end") == "auto"
    assert config == load("oc20/eqv2_dens.yml")


def test_the_ladder_of_relaxation_differs_from_the_demo_in_its_noise_only():
    ladder, demo = load(LADDER), load("oc20/eqv2_dens_demo.yml")
    assert ladder["model"]["backbone"].pop("sigma_encoding") is True
    assert {name: value for name, value in ladder["optim"].pop("dens").items() if value} == {
        "prob": 0.5,
        "denoising_coefficient": 20,
        "sigma_low": 0.01,
        "sigma_high": 0.3,
        "num_sigmas": 30,
    }
    del demo["optim"]["dens"]
    assert ladder == demo


def test_morered_of_the_demo_has_the_model_of_the_demo():
    ours, demo = load("oc20/eqv2_morered_demo.yml"), load("oc20/eqv2_demo.yml")
    ours, demo = ours["model"]["backbone"], demo["model"]["backbone"]
    own = {"model", "force_encoding", "fast"}
    neighbours = {"enforce_max_neighbors_strictly", "max_neighbors", "avg_degree"}
    differing = {name for name in ours.keys() | demo.keys() if ours.get(name) != demo.get(name)}
    assert differing == own | neighbours

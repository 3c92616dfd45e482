"""Settings of the trained function come from the checkpoint, with one notice."""

import copy
import logging

import pytest
import torch
import yaml
from helpers.checkpoint_files import dens_trainer, flatten, plain_trainer, save
from helpers.trainers import BACKBONE as SETTINGS
from helpers.trainers import DENS, MODEL, NORMALIZER, OPTIM, STOCK_MODEL, trainer_config

import dens
from dens.cli import main
from dens.fairchem1.checkpoints.export import export_checkpoint
from dens.fairchem1.checkpoints.layouts import DENS as DENS_LAYOUT
from dens.fairchem1.checkpoints.layouts import EMBEDDING, PLAIN, Checkpoint
from dens.fairchem1.checkpoints.trained_settings import adopt
from dens.fairchem1.launch import parse_args, read_config
from dens.settings import ConfigError

NOISE = {"output_heads.noise.force_block.x": torch.ones(1)}
REPLACED = "Settings with which .* was trained replace those of the config: "


def section(heads=None, **backbone):
    model = copy.deepcopy(MODEL)
    model["backbone"].update(backbone)
    model["backbone"] = {k: v for k, v in model["backbone"].items() if v != "absent"}
    for name, head in (heads or {}).items():
        model["heads"].setdefault(name, {}).update(head)
    return model


def source(model, rows=90, resumable=False, config=True) -> Checkpoint:
    weights = {EMBEDDING: torch.ones(rows, 8), **(NOISE if resumable else {})}
    content = {"optimizer": {}} if resumable else {}
    layout = DENS_LAYOUT if resumable else PLAIN
    return Checkpoint(layout, weights, model if config else None, {}, {}, content)


STRESS = {"module": "rank2_symmetric_head"}
CASES = {  # of the checkpoint, of the config, what is replaced
    "equal": ({}, {}, []),
    "energies": ({"avg_num_nodes": 18.8}, {"avg_num_nodes": 1.88}, ["avg_num_nodes = 18.8"]),
    "absent in the config": ({"avg_degree": 9.5}, {}, ["avg_degree = 9.5 (config: by default 23"]),
    "absent in the file": ({}, {"avg_degree": 9.5}, ["avg_degree = 23.395238876342773 (config: 9"]),
    "null is the default": ({"avg_degree": None}, {"avg_degree": 23.395238876342773}, []),
    "absent is the default": ({}, {"use_sep_s2_act": True, "distance_function": "gaussian"}, []),
    "numbers": ({"max_radius": 4}, {"max_radius": 4.0}, []),
    "flags": ({"use_attn_renorm": 1}, {"use_attn_renorm": True}, []),
    "graph": (
        {"enforce_max_neighbors_strictly": False, "use_pbc": False, "max_neighbors": 7},
        {"otf_graph": False, "max_radius": 6.0},
        [
            *("use_pbc = False", "otf_graph = True (config: False)", "max_neighbors = 7 (config: "),
            *("max_radius = 4.0 (config: 6.0)", "enforce_max_neighbors_strictly = False"),
        ],
    ),
    "layers": (
        {"norm_type": "rms_norm_sh", "grid_resolution": "absent", "use_gate_act": True},
        {"share_atom_edge_embedding": True, "attn_activation": "scaled_silu"},
        ["norm_type", "grid_resolution = None", "share_", "attn_activation = 'silu'", "use_gate"],
    ),
    "training": (
        {"alpha_drop": 0.5, "drop_path_rate": 0.5, "proj_drop": 0.5, "weight_init": "normal"},
        {"fast": False, "activation_checkpoint": True, "regress_forces": False},
        [],
    ),
    "sizes": ({"num_layers": 2, "lmax_list": [3]}, {"sphere_channels": 4}, []),
    "references": (
        {"load_energy_lin_ref": True, "use_energy_lin_ref": True},
        {},
        ["load_energy_lin_ref = True", "use_energy_lin_ref = True"],
    ),
    "references switched off": (
        {"load_energy_lin_ref": True, "use_energy_lin_ref": True},
        {"use_energy_lin_ref": False},
        [],
    ),
    "sigma of whom": (
        {"sigma_encoding": "structure"},
        {"sigma_encoding": True},
        ["sigma_encoding = 'structure' (config: True)"],
    ),
    "sigma is new": ({}, {"sigma_encoding": True}, []),
    "heads": (
        {"heads": {"energy": {"reduce": "mean"}, "stress": {**STRESS, "extensive": True}}},
        {"heads": {"stress": {**STRESS, "avg_num_nodes": 3.0}}},
        [
            *("heads.energy.reduce = 'mean' (config: by default 'sum')", "heads.stress.extensive"),
            "heads.stress.avg_num_nodes = 1.0 (config: 3.0)",
        ],
    ),
}


@pytest.mark.parametrize(("trained", "given", "expected"), CASES.values(), ids=CASES)
def test_what_a_checkpoint_replaces(trained, given, expected):
    model = section(**given)
    before = copy.deepcopy(model)
    adopted, replaced = adopt(model, source(section(**trained)), "x.pt")
    assert model == before
    lines = sorted(map(str, replaced))
    for fragment in expected:
        assert sum(fragment in line for line in lines) == 1, (fragment, lines)
    assert len(lines) == len(expected), lines
    assert all(line.startswith("model.") and "config: " in line for line in lines)
    again, more = adopt(adopted, source(section(**trained)), "x.pt")
    assert again == adopted
    assert not more


def test_a_flat_list_of_settings():
    model = {"name": "dens_equiformer_v2", **SETTINGS, "max_radius": 6.0}
    adopted, replaced = adopt(model, source(section()), "x.pt")
    assert adopted["max_radius"] == 4.0
    assert [str(r) for r in replaced] == ["model.max_radius = 4.0 (config: 6.0)"]


def test_heads_of_other_names():
    model = section()
    model["heads"] = {"E": {"module": "equiformerV2_scalar_head"}}
    trained = section({"energy": {"reduce": "mean"}})
    adopted, _ = adopt(model, source(trained), "x.pt")
    assert adopted["heads"]["E"]["reduce"] == "mean"


def test_a_resumed_model_keeps_its_encoding():
    trained = section(force_encoding=False)
    _, fine_tuned = adopt(section(sigma_encoding=True), source(trained), "x.pt")
    adopted, resumed = adopt(section(sigma_encoding=True), source(trained, resumable=True), "x.pt")
    assert not fine_tuned
    assert len(resumed) == 2
    assert adopted["backbone"]["force_encoding"] is adopted["backbone"]["sigma_encoding"] is False


@pytest.mark.parametrize(
    ("rows", "given", "resumable", "expected"),
    [
        (90, "absent", True, None),
        (100, "absent", False, 100),
        (50, "absent", True, 50),
        (50, "absent", False, None),  # grows to the default
        (50, 90, False, None),
    ],
)
@pytest.mark.parametrize("config", [False, True])
def test_number_of_elements(rows, given, resumable, expected, config):
    model = section(max_num_elements=given)
    adopted, replaced = adopt(model, source(section(), rows, resumable, config), "x.pt")
    assert len(replaced) == (expected is not None)
    assert adopted["backbone"].get("max_num_elements", "absent") == (expected or given)


def test_fewer_elements_are_refused():
    message = r"x.pt does not fit .* is 90 in the checkpoint and 60 in the config: it may be larger"
    with pytest.raises(ConfigError, match=message):
        adopt(section(max_num_elements=60), source(section()), "x.pt")


# ---- whole runs -------------------------------------------------------------------------------

OTHER = {  # than those of SETTINGS; each changes energies or forces
    "avg_num_nodes": 1.88,
    "max_radius": 6.0,
    "max_neighbors": 4,
    "ffn_activation": "scaled_silu",
}


def validation(trainer):
    torch.manual_seed(0)  # the frames of edges are random
    metrics = trainer.validate(disable_tqdm=True)
    return {name: metrics[name]["metric"] for name in ("energy_mae", "forces_mae")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model: its validation errors, checkpoint, export and data."""
    from helpers.trainers import write_dataset

    folder = tmp_path_factory.mktemp("source")
    src = write_dataset(folder / "data")
    trainer = dens_trainer(src, folder / "run", MODEL)
    trainer.train(disable_eval_tqdm=True)
    own = save(trainer)
    export_checkpoint(own, folder / "eqv2.pt")
    flat = flatten(folder / "eqv2.pt")
    return validation(trainer), {"own": own, "plain": folder / "eqv2.pt", "flat": flat}, src


def notices(caplog, fragment):
    return [r.getMessage() for r in caplog.records if fragment in r.getMessage()]


@pytest.mark.parametrize("kind", ["own", "plain", "flat"])
def test_loaded_with_other_settings(trained, tmp_path, caplog, kind):
    """A trainer that was built with other values has the errors of the source run at step 0."""
    expected, paths, src = trained
    trainer = dens_trainer(src, tmp_path / "run", section(**OTHER))
    optimizer = trainer.optimizer
    trainer.load_checkpoint(str(paths[kind]))
    assert validation(trainer) == pytest.approx(expected, rel=1e-6)
    (notice,) = notices(caplog, "was trained replace")
    for key, value in OTHER.items():
        assert f"model.backbone.{key} = " in notice
        assert f"(config: {value!r})" in notice
    assert trainer.checkpoint_notices == (notice,)
    assert trainer.optimizer is not optimizer
    parameters = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert parameters == set(trainer.model.parameters())
    if kind == "own":
        trainer.config["optim"]["max_epochs"] = 3
        trainer.train(disable_eval_tqdm=True)
        saved = torch.load(save(trainer), weights_only=True)
        assert saved["step"] == 6
        assert saved["config"]["model"]["backbone"]["max_radius"] == 4.0


def test_model_pretrained(trained, tmp_path, caplog):
    expected, paths, src = trained
    model = {**section(**OTHER), "pretrained": str(paths["plain"])}
    trainer = dens_trainer(src, tmp_path / "run", model)
    assert validation(trainer) == pytest.approx(expected, rel=1e-6)
    assert notices(caplog, "was trained replace")


def write_config(src, path, **backbone):
    config = trainer_config(src, model=section(**backbone))
    optim = {**OPTIM, "dens": DENS}
    keys = ("model", "outputs", "dataset", "loss_functions", "evaluation_metrics")
    config = {key: config[key] for key in keys}
    config |= {"trainer": "dens.DeNSTrainer", "optim": optim, "logger": "tensorboard"}
    path.write_text(yaml.safe_dump(config))
    return config


@pytest.mark.parametrize("start", ["--checkpoint", "model.pretrained", "--timestamp-id"])
@pytest.mark.parametrize("mode", ["train", "validate"])
def test_config_of_a_run(trained, tmp_path, monkeypatch, caplog, start, mode):
    """The launcher, and dens evaluate with it, build the model with the checkpoint's settings."""
    _, paths, src = trained
    monkeypatch.chdir(tmp_path)
    write_config(src, tmp_path / "config.yml", **OTHER)
    argv = ["--config", "config.yml", "--mode", mode, "--cpu"]
    if start == "--checkpoint" or mode == "validate":
        argv += ["--checkpoint", str(paths["plain"])]
    elif start == "model.pretrained":
        argv += [f"--model.pretrained={paths['plain']}"]
    else:  # fairchem resumes a run of the same id
        run = paths["own"].parent.parent.parent
        argv += ["--run-dir", str(run), "--timestamp-id", paths["own"].parent.name]
    backbone = read_config(*parse_args(argv))["model"]["backbone"]
    assert {key: backbone[key] for key in ("max_radius", "max_neighbors", "ffn_activation")} == {
        "max_radius": 4.0,
        "max_neighbors": 10,
        "ffn_activation": "silu",
    }
    assert len(notices(caplog, "was trained replace")) == 1


def test_the_program_validates_with_the_trained_settings(trained, tmp_path, monkeypatch, caplog):
    """The errors are those of the source run, as it printed them."""
    expected, paths, src = trained
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    write_config(src, tmp_path / "config.yml", **OTHER)
    argv = ["--config", "config.yml", "--mode", "validate", "--cpu", "--checkpoint"]
    main([*argv, str(paths["plain"])])
    (line,) = [text for text in caplog.messages if text.startswith("energy_mae: ")]
    found = dict(entry.split(": ") for entry in line.split(", "))
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=2e-3)
    assert len(notices(caplog, "was trained replace")) == 1


def test_stock_trainers_too(trained, tmp_path, monkeypatch, caplog):
    _, paths, src = trained
    monkeypatch.chdir(tmp_path)
    config = write_config(src, tmp_path / "config.yml")
    del config["optim"]["dens"]
    stock = copy.deepcopy(STOCK_MODEL)
    stock["backbone"]["max_radius"] = 6.0
    config |= {"trainer": "equiformerv2_forces", "model": stock}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    argv = ["--config", "config.yml", "--mode", "validate", "--cpu", "--checkpoint"]
    found = read_config(*parse_args([*argv, str(paths["plain"])]))
    assert found["model"]["backbone"]["max_radius"] == 4.0
    torch.save({"state_dict": {"x": torch.ones(1)}}, "other.pt")  # what it is, fairchem says
    found = read_config(*parse_args([*argv, "other.pt"]))
    assert found["model"]["backbone"]["max_radius"] == 6.0
    assert notices(caplog, "other.pt is no checkpoint of a known layout")


def test_check_and_evaluate(trained, tmp_path, monkeypatch, capsys):
    expected, paths, src = trained
    monkeypatch.chdir(tmp_path)
    write_config(src, tmp_path / "config.yml", **OTHER)
    with pytest.raises(SystemExit):
        main(["check", "config.yml", "--checkpoint", str(paths["plain"]), "--sample", "4"])
    out = capsys.readouterr().out
    assert "checkpoint: Settings with which" in out
    assert "avg_num_nodes = 77.81317 (config: 1.88)" in out
    argv = ["evaluate", "--config", "config.yml", "--checkpoint", str(paths["plain"])]
    with pytest.raises(SystemExit):
        main(argv)
    rows = capsys.readouterr().out.splitlines()
    (row,) = (row for row in rows if row.startswith("forces_mae "))
    assert float(row.split()[-1]) == pytest.approx(expected["forces_mae"], abs=2e-3)
    for split, message in {
        "test": "dataset.test.src is missing",
        "train": "'--split': 'train' is not one of 'val', 'test'",
    }.items():
        with pytest.raises(SystemExit) as error:
            main([*argv, "--split", split])
        assert error.value.code == 2
        assert message in capsys.readouterr().err


# ---- normalisers and element references -------------------------------------------------------


def with_scales(src, folder, normalizer, references=None):
    dataset = trainer_config(src)["dataset"]
    dataset["train"]["transforms"] = {"normalizer": normalizer}
    if references is not None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"element_references": references}, folder / "references.pt")
        dataset["train"]["transforms"]["element_references"] = {
            "energy": {"file": str(folder / "references.pt")}
        }
    return dens_trainer(src, folder, MODEL, dataset=dataset)


def test_normalisers_are_the_checkpoints(trained, tmp_path, caplog):
    expected, paths, src = trained
    energy = {"mean": 3.0, "stdev": 7.0}
    trainer = with_scales(src, tmp_path / "run", {**NORMALIZER, "energy": energy})
    trainer.load_checkpoint(str(paths["plain"]))
    assert validation(trainer) == pytest.approx(expected, rel=1e-6)
    (notice,) = notices(caplog, "Normalisers of")
    assert notice.endswith("energy mean -0.5, stdev 2 (config: mean 3, stdev 7)")


def test_a_checkpoint_without_normalisers(dataset, tmp_path, caplog):
    source = with_scales(dataset, tmp_path / "source", {})
    path = save(source)
    trainer = dens_trainer(dataset, tmp_path / "run", MODEL)
    trainer.load_checkpoint(str(path))
    assert validation(trainer) == pytest.approx(validation(source), rel=1e-6)
    (notice,) = notices(caplog, "Normalisers of")
    assert "energy none (config: mean -0.5, stdev 2); forces none (config: mean 0, st" in notice


def test_bare_weights_cannot_be_compared(trained, tmp_path, caplog):
    _, paths, src = trained
    content = torch.load(paths["plain"], weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "bare.pt")
    trainer = dens_trainer(src, tmp_path / "run", section(**OTHER))
    trainer.load_checkpoint(str(tmp_path / "bare.pt"))
    assert trainer._unwrapped_model.backbone.max_radius == 6.0
    (notice,) = notices(caplog, "holds no config")
    assert "cannot be compared" in notice
    assert len(trainer.checkpoint_notices) == 1


# ---- more elements ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "plain", "shared"])
def test_the_embedding_of_elements_grows(trained, tmp_path, caplog, kind):
    """The old elements have their rows, averages included, and the same energies and forces."""
    expected, paths, src = trained
    changes = {"max_num_elements": 100}
    if kind == "shared":
        changes["share_atom_edge_embedding"] = True
        smaller = section(share_atom_edge_embedding=True)
        source = dens_trainer(src, tmp_path / "source", smaller)
        source.train(disable_eval_tqdm=True)
        expected, paths = validation(source), {"shared": save(source)}
    trainer = dens_trainer(src, tmp_path / "run", section(**changes))
    fresh = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.load_checkpoint(str(paths[kind]))
    assert validation(trainer) == pytest.approx(expected, rel=1e-7)
    old = dens.fairchem1.checkpoints.layouts.read(paths[kind]).weights
    grown = [name for name in old if len(fresh[name]) == 100]
    assert len(grown) == {"shared": 3, "plain": 7, "own": 9}[kind]
    for name, value in trainer.model.state_dict().items():
        if name in grown:
            assert torch.equal(value[:90], old[name])
            assert torch.equal(value[90:], fresh[name][90:])
    for value, average in zip(trainer.model.parameters(), trainer.ema.shadow_params, strict=True):
        assert torch.equal(value, average)
    (notice,) = notices(caplog, "knows atomic numbers below 90")
    assert ("optimizer, schedule and step start anew" in notice) == (kind != "plain")
    assert trainer.step == 0
    trainer.train(disable_eval_tqdm=True)
    assert torch.load(save(trainer), weights_only=True)["step"] == 4


def test_energy_references_grow(dataset, tmp_path):
    stock = copy.deepcopy(STOCK_MODEL)
    stock["backbone"].update(load_energy_lin_ref=True, use_energy_lin_ref=True)
    source = plain_trainer(dataset, tmp_path / "source", stock)
    with torch.no_grad():
        source.model.backbone.energy_lin_ref.copy_(torch.linspace(-1, 1, 90))
    trainer = dens_trainer(dataset, tmp_path / "run", section(max_num_elements=100))
    logging.disable(logging.NOTSET)
    trainer.load_checkpoint(str(save(source)))
    found = trainer._unwrapped_model.backbone.energy_lin_ref
    assert torch.equal(found[:90], torch.linspace(-1, 1, 90))
    assert (found[90:] == 0).all()

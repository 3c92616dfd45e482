"""Keys of all sections of a config: misspelt ones are refused, whatever reads the section."""

import pytest
from fairchem.core.common.registry import registry
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from helpers.settled import config, errors
from helpers.trainers import BACKBONE, MODEL, trainer_config

from dens.fairchem1 import DeNSTrainer
from dens.fairchem1.config.settle import settle
from dens.settings import ConfigError

MISSPELT = [
    ("loggr", {"name": "wandb"}, "did you mean logger?"),
    ("task.strict_lod", False, "did you mean strict_load?"),
    ("task.relax_opt.memry", 50, "did you mean memory?"),
    ("model.otf_grap", True, "did you mean otf_graph?"),
    ("model.backbone.num_layer", 3, "did you mean num_layers?"),
    ("model.backbone.force_encodin", True, "did you mean force_encoding?"),
    ("model.heads.noise.output_nam", "noise", "did you mean output_name?"),
    ("model.finetune_config.starting_checkpont", "a.pt", "did you mean starting_checkpoint?"),
    ("outputs.forces.levl", "atom", "did you mean level?"),
    ("outputs.energy.decomposition.part.irrep_dims", 2, "did you mean irrep_dim?"),
    ("dataset.trian", {}, "did you mean train?"),
    ("dataset.train.scr", "nowhere", "did you mean src?"),
    ("dataset.train.on_bda", "skip", "did you mean on_bad?"),
    ("dataset.val.frist_n", 3, "did you mean first_n?"),
    ("dataset.train.transforms.normaliser", {}, "did you mean normalizer?"),
    ("dataset.train.transforms.normalizer.energy.stdv", 1.0, "did you mean stdev?"),
    ("dataset.train.transforms.normalizer.fit.num_batchs", 1, "did you mean num_batches?"),
    ("dataset.train.transforms.element_references.fit.targts", [], "did you mean targets?"),
    ("optim.wacth", {"figures_every": 3}, "did you mean watch?"),
    ("optim.max_skiped_steps", 3, "did you mean max_skipped_steps?"),
    ("optim.scheduler_params.warmup_factr", 0.1, "did you mean warmup_factor?"),
    ("optim.optimizer_params.weight_decy", 0.1, "did you mean weight_decay?"),
    ("loss_functions.0.energy.coeficient", 0.1, "did you mean coefficient?"),
    ("evaluation_metrics.primary_metrc", "loss", "did you mean primary_metric?"),
    ("logger.projct", "p", "did you mean project?"),
    ("slurm.contraint", "gpu", "did you mean constraint?"),
]
OF_DENS = ("force_encodin", "noise", "on_bda", "wacth", "max_skiped")
CASES = [("dens.DeNSTrainer", *case) for case in MISSPELT]
CASES += [
    ("equiformerv2_forces", *case)
    for case in MISSPELT
    if not any(part in case[0] for part in OF_DENS)
]


@pytest.mark.parametrize(("trainer", "key", "value", "hint"), CASES, ids=lambda v: str(v)[:30])
def test_misspelt_keys_are_refused_in_one_line(trainer, key, value, hint):
    (line,) = errors((key, value), trainer=trainer)
    assert line.startswith(f"unknown key {key.rpartition('.')[2]}")
    assert f"({key.replace('.0.', '.')}): {hint}" in line


@pytest.mark.parametrize("key", ["sections", "task.x", "optim.lr", "model.backbone.q", "logger.x"])
def test_other_unknown_keys_are_refused_with_the_known_ones(key):
    (line,) = errors((key, 3))
    assert f"unknown key {key.rpartition('.')[2]} = 3 ({key}): " in line


@pytest.mark.parametrize("key", ["sections", "task.x", "optim.lr", "logger.x", "dataset.train.x"])
def test_stock_trainers_may_have_other_keys(key):
    settle(config((key, 3), trainer="equiformerv2_forces"))


def test_all_mistakes_are_said_at_once():
    changes = [("optim.dens.sigma", -1), ("loggr", 3), ("dataset.train.scr", "a")]
    lines = errors(*changes, ("optim.lr_initial", "1e-3"))
    assert len(lines) == 4
    for part in ("optim.dens.sigma", "(loggr)", "(dataset.train.scr)", "(optim.lr_initial)"):
        assert sum(part in line for line in lines) == 1


@pytest.mark.parametrize(
    "section",
    ["optim", "model", "task", "dataset", "outputs", "outputs.forces", "model.heads.noise"],
)
def test_sections_must_be_mappings(section):
    assert any(f"{section} must be a mapping, got 3" in line for line in errors((section, 3)))


def test_losses_must_be_a_list():
    assert errors(("loss_functions", {"forces": {}})) == [
        "loss_functions must be a list, got {'forces': {}} (loss_functions)"
    ]


# ---- classes of the user's own -------------------------------------------------------------------


class OwnTrainer(DeNSTrainer):
    pass


class OwnBackbone(EquiformerV2Backbone):
    encodes_forces = True

    def __init__(self, my_own: int = 3, **kwargs) -> None:
        super().__init__(**kwargs)


@pytest.fixture
def own_classes(monkeypatch):
    mapping = registry.mapping
    monkeypatch.setitem(mapping["trainer_name_mapping"], "own_trainer", OwnTrainer)
    monkeypatch.setitem(mapping["model_name_mapping"], "own_backbone", OwnBackbone)
    monkeypatch.setitem(mapping["dataset_name_mapping"], "own_format", OwnTrainer)
    monkeypatch.setitem(mapping["logger_name_mapping"], "own_logger", OwnTrainer)


OWN = [
    ("dataset.train.format", "own_format", "dataset.train"),
    ("logger.name", "own_logger", "logger"),
    ("model.backbone.model", "own_backbone", "model.backbone"),
]


@pytest.mark.parametrize(("key", "name", "section"), OWN)
def test_own_classes_may_read_keys_of_their_own(key, name, section, own_classes):
    settle(config((key, name), (f"{section}.qqq", 3)))
    near = {"dataset.train": "scr", "logger": "projct", "model.backbone": "my_ownn"}[section]
    (line,) = errors((key, name), (f"{section}.qqq", 3), (f"{section}.{near}", 3))
    assert f"({section}.{near}): did you mean" in line


def test_trainers_of_ones_own_may_read_keys_of_their_own(own_classes):
    found = config(("optim.qqq", 3), ("sections", 3), ("task.x", 3))
    settle({**found, "trainer": "own_trainer"})
    found["optim"]["wacth"] = 3
    with pytest.raises(ConfigError, match="did you mean watch"):
        settle({**found, "trainer": "own_trainer"})


# ---- configs of others ---------------------------------------------------------------------------


def test_flat_models_take_the_keys_of_the_backbone():
    settle(config(("model", {"name": "dens.EquiformerV2DeNS", **BACKBONE, "fast": False})))
    (line,) = errors(("model", {"name": "dens.EquiformerV2DeNS", **BACKBONE, "num_layer": 3}))
    assert "(model.num_layer): did you mean num_layers?" in line


def test_older_forms_pass():
    """Keys of the configs that come with fairchem 1.10 and with the authors' repository."""
    optim = {
        **{"force_coefficient": 100, "energy_coefficient": 1, "loss_energy": "mae"},
        **{"loss_force": "l2mae", "load_balancing": "atoms", "eval_every": 5000},
        "use_denoising_pos": True,
        "denoising_pos_params": {
            **{"prob": 0.5, "fixed_noise_std": True, "std": 0.15, "num_steps": 50},
            **{"std_low": 0.01, "std_high": 0.2, "corrupt_ratio": 0.5},
        },
        "denoising_pos_coefficient": 25,
    }
    task = {
        **{"dataset": "trajectory_lmdb_v2", "description": "S2EF", "type": "regression"},
        **{"metric": "mae", "primary_metric": "forces_mae", "labels": ["potential energy"]},
        **{"grad_input": "atomic forces", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        **{"prediction_dtype": "float32", "relaxation_steps": 300, "relaxation_fmax": 0.02},
        "relax_dataset": {"src": "a"},
        "relax_opt": {"name": "lbfgs", "maxstep": 0.2, "memory": 50, "damping": 1.2, "alpha": 80.0},
    }
    scale = {"normalize_labels": True, "target_mean": -0.5, "target_std": 2.0}
    scale |= {"grad_target_mean": 0.0, "grad_target_std": 1.5}
    found = config(
        ("task", task),
        ("dataset", [{"src": "a", "lin_ref": None, "oc20_ref": None, **scale}, {"src": "b"}]),
        ("compute_stats", False),
        ("hide_eval_progressbar", False),
        ("model.backbone.use_force_encoding", True),
        ("model.backbone.use_noise_schedule_sigma_encoding", False),
    )
    found["optim"] = {**{k: v for k, v in found["optim"].items() if k != "dens"}, **optim}
    settled = settle(found)
    assert settled["optim"]["dens"]["sigma"] == 0.15
    assert settled["task"]["dataset"] == "trajectory_lmdb"
    assert "use_denoising_pos" not in settled["optim"]
    assert settle(settled) == settled


def test_a_scheduler_of_torch_may_be_configured_either_way():
    """fairchem's trainers read its arguments from `optim`, EquiformerV2's from a section."""
    plateau = {"scheduler": "ReduceLROnPlateau", "mode": "min", "factor": 0.8, "patience": 3}
    found = config(trainer="forces")
    found["optim"] = {**{k: v for k, v in found["optim"].items() if "sched" not in k}, **plateau}
    settle(found)
    found["optim"]["patence"] = 3
    with pytest.raises(ConfigError, match="did you mean patience"):
        settle(found)
    params = {"factor": 0.8, "patience": 3}
    settle(config(("optim.scheduler", "ReduceLROnPlateau"), ("optim.scheduler_params", params)))


def test_a_finetuning_config_of_fairchem_passes():
    fit = {"targets": {"forces": {"mean": 0.0}}, "batch_size": 64, "num_batches": 10}
    transforms = {
        "decompose_tensor": {"tensor": "stress", "rank": 2, "decomposition": {}},
        "normalizer": {"fit": fit},
        "element_references": {"fit": {**fit, "targets": ["energy"]}},
    }
    found = config(
        ("dataset.train.format", "ase_db"),
        ("dataset.train.a2g_args", {"r_energy": True, "r_forces": True}),
        ("dataset.train.transforms", transforms),
        ("outputs.stress", {"property": "stress", "level": "system", "decomposition": {}}),
        ("model.finetune_config", {"starting_checkpoint": "a.pt"}),
        trainer="equiformerv2_forces",
    )
    del found["model"]["backbone"]
    settle(found)


def test_trainers_built_by_hand_are_checked(dataset):
    with pytest.raises(ConfigError, match=r"\(optim.wacth\): did you mean watch"):
        DeNSTrainer(**trainer_config(dataset, optim={"wacth": {}}))
    backbone = {**MODEL["backbone"], "num_layer": 3}
    with pytest.raises(ConfigError, match=r"\(model.backbone.num_layer\)"):
        DeNSTrainer(**trainer_config(dataset, model={**MODEL, "backbone": backbone}))

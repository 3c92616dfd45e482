"""Schemas of the sections of a training config: what fairchem-core 1.10 and dens read of each.

They say which keys are known and what their values must be. Sections whose keys depend on a class
that the config names (backbone, head, optimizer, scheduler) are made from its signature.
"""

from __future__ import annotations

import inspect
from typing import Literal

from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from fairchem.core.models.equiformer_v2 import equiformer_v2, equiformer_v2_deprecated
from fairchem.core.modules.normalization import element_references, normalizer
from pydantic import BaseModel, ConfigDict, model_validator

from dens.data.checked import BadRecordSettings
from dens.fairchem1.config.kinds import kind_of, make_schema, signature_schema
from dens.fairchem1.model.equiformer_v2 import EquiformerV2Backbone, EquiformerV2DeNS
from dens.settings import known_keys, setting


class StepSettings(BaseModel):
    """Settings of training steps in the section ``optim``, beyond those of fairchem."""

    model_config = ConfigDict(frozen=True, strict=True)

    grad_accumulation_steps: int = setting(
        "an integer >= 1", "micro-batches that a step's batch is computed in", default=1, ge=1
    )
    amp_dtype: Literal["bfloat16"] | None = setting(
        "'bfloat16' or null (--amp is float16)", "precision of the model's products", default=None
    )
    max_skipped_steps: int = setting(
        "an integer >= 1", "steps in a row that may be skipped as not finite", default=10, ge=1
    )


def model_schema(model_class: type, more: str) -> tuple[type[BaseModel], bool]:
    """Make the schema of the keyword arguments of a model class; tell whether it may take others.

    ``**kwargs`` are taken to be those of the next class in the order of inheritance. That is
    certain for classes of fairchem and dens only.
    """
    kinds: dict[str, list[str]] = {"others": [more]}
    open_ended, classes = False, model_class.__mro__
    if EquiformerV2DeNS in classes:  # it passes them on to its backbone
        classes = classes[: classes.index(EquiformerV2DeNS) + 1] + EquiformerV2Backbone.__mro__
    for cls in classes:
        if "__init__" not in vars(cls):
            continue
        found = list(inspect.signature(cls.__init__).parameters.values())[1:]
        for p in found:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                kinds.setdefault(kind_of(p.default), []).append(p.name)
        if all(p.kind != p.VAR_KEYWORD for p in found):
            break
        open_ended |= not is_known_class(cls)
    bases = (EquiformerV2Settings,) if any(cls in classes for cls in _EQUIFORMER_V2) else ()
    checked = {name for base in bases for name in known_keys(base)}
    names = {k: " ".join(n for n in listed if n not in checked) for k, listed in kinds.items()}
    return make_schema(**names, bases=bases), open_ended


def is_known_class(cls: type) -> bool:
    """Tell whether a class is fairchem's or ours, so that all the settings it reads are known."""
    return cls.__module__.split(".")[0] in ("fairchem", "dens")


_EQUIFORMER_V2 = (
    equiformer_v2.EquiformerV2Backbone,
    equiformer_v2_deprecated.EquiformerV2,
    EquiformerV2Backbone,
)


_ACTIVATION = setting("'silu' or 'scaled_silu', which are the same", "", default="scaled_silu")


class EquiformerV2Settings(
    make_schema(
        counts="max_neighbors max_num_elements num_layers sphere_channels attn_hidden_channels "
        "num_heads attn_alpha_channels attn_value_channels ffn_hidden_channels edge_channels",
        optional_counts="grid_resolution",
        positive="max_radius",
        optional_positive="avg_num_nodes avg_degree",
        rates="alpha_drop drop_path_rate proj_drop",
        degrees="lmax_list",
        orders="mmax_list",
        switches="use_pbc use_pbc_single regress_forces otf_graph use_atom_edge_embedding "
        "share_atom_edge_embedding use_m_share_rad use_s2_act_attn use_attn_renorm use_gate_act "
        "use_grid_mlp use_sep_s2_act enforce_max_neighbors_strictly",
    )
):
    """Settings of EquiformerV2 that it would fail on without a message, or ignore."""

    norm_type: Literal["layer_norm", "layer_norm_sh", "rms_norm_sh"] = setting(
        "'layer_norm', 'layer_norm_sh' or 'rms_norm_sh'", "", default="rms_norm_sh"
    )
    weight_init: Literal["normal", "uniform"] = setting(
        "'normal' or 'uniform'", "", default="normal"
    )
    distance_function: Literal["gaussian"] = setting("'gaussian'", "", default="gaussian")
    # fairchem 1.10 computes SiLU whatever the name
    attn_activation: Literal["silu", "scaled_silu"] = _ACTIVATION
    ffn_activation: Literal["silu", "scaled_silu"] = _ACTIVATION

    @model_validator(mode="after")
    def _consistent(self) -> EquiformerV2Settings:
        lmax, mmax = self.lmax_list or [6], self.mmax_list or [2]
        if len(lmax) != len(mmax):
            raise ValueError(f"lmax_list and mmax_list must be equally long, got {lmax} and {mmax}")
        if any(m > degree for m, degree in zip(mmax, lmax, strict=True)):
            raise ValueError(f"mmax_list must not be above lmax_list, got {mmax} and {lmax}")
        least, grid = 2 * (max(lmax) + 1), self.grid_resolution
        if grid is not None and (grid < least or grid % 2):
            raise ValueError(
                f"grid_resolution must be even and at least 2 (lmax + 1) = {least}, got {grid}"
            )
        if self.use_s2_act_attn:
            raise ValueError("use_s2_act_attn must be false: fairchem 1.10 lacks it, got True")
        if self.share_atom_edge_embedding and self.use_atom_edge_embedding is False:
            raise ValueError("share_atom_edge_embedding needs use_atom_edge_embedding, got false")
        return self


class _Normalizer(
    signature_schema(normalizer.create_normalizer, scales="mean", spreads="rmsd stdev")
):
    @model_validator(mode="after")
    def _complete(self) -> _Normalizer:
        if any(value is not None for value in (self.file, self.state_dict, self.tensor)):
            return self
        if self.mean is None or (self.rmsd is None and self.stdev is None):
            raise ValueError("a normalizer needs mean and rmsd (or stdev), or a file")
        return self


ANY = make_schema()
TOP = make_schema(
    "trainer task model outputs dataset optim loss_functions evaluation_metrics logger slurm "
    "hide_eval_progressbar "
    # fairchem's multitask trainer
    "datasets tasks combined_dataset evaluations "
    # older forms, and a switch of the authors' repository
    "loss_fns eval_metrics compute_stats noddp note "
    # set by the launcher, or arguments of a trainer
    "mode identifier timestamp_id seed is_debug run_dir print_every amp checkpoint cpu submit "
    "summit world_size distributed_backend gp_gpus local_rank name inference_only"
)
TASK = make_schema(
    "dataset description type metric labels primary_metric grad_input train_on_free_atoms "
    "eval_on_free_atoms relax_dataset relax_opt relax_cell relax_volume save_full_traj write_pos "
    "eval_relaxations set_deterministic_scatter prediction_dtype strict_load pretrained",
    counts="relaxation_steps num_relaxation_batches",
    positive="relaxation_fmax",
)
RELAX_OPT = signature_schema(
    LBFGS,
    more="name",
    without="optimizable_batch",
    positive="maxstep damping alpha",
    indices="memory",  # 0: steps along the forces
)
OUTPUT = make_schema(
    "property parent decomposition train_on_free_atoms eval_on_free_atoms prediction_dtype",
    levels="level",
    indices="irrep_dim",
)
LOSS = make_schema("fn", not_negative="coefficient", reductions="reduction")
METRICS = make_schema("metrics primary_metric")
LOGGER = make_schema("name project entity group watch quiet", numbers="log_weight_table")
SLURM = make_schema(  # options of sbatch, of which there are more
    "additional_parameters account comment constraint cpus_per_gpu cpus_per_task dependency "
    "exclude exclusive gpus_per_node gpus_per_task gres mail_type mail_user mem mem_per_cpu "
    "mem_per_gpu nodelist nodes ntasks_per_node tasks_per_node partition qos reservation time wckey"
)
FINETUNE = make_schema("starting_checkpoint override")
SPLITS = make_schema("train val test relax")
SPLIT = make_schema(
    "src format key_mapping transforms lin_ref metadata_path use_train_settings splits subset_to "
    "no_shuffle train_split_settings val_split_settings test_split_settings "
    # LMDB, and OC22
    "data2train train_on_oc20_total_energies oc20_ref "
    # ASE
    "a2g_args keep_in_memory atoms_transform_args include_relaxed_energy ase_read_args pattern "
    "index_file use_tqdm connect_args select_args "
    # the older form
    f"normalize_labels {' '.join(known_keys(BadRecordSettings))}",
    numbers="max_atom target_mean grad_target_mean",
    optional_counts="max_atoms first_n sample_n total_shards",
    indices="seed shard",
    optional_positive="target_std grad_target_std",
)
TRANSFORMS = make_schema("normalizer element_references decompose_tensor")
_FIT = {"without": "dataset", "counts": "batch_size", "optional_counts": "num_batches"}
SCALES = {  # settings of a target, and of `fit`
    "normalizer": (
        _Normalizer,
        signature_schema(
            normalizer.fit_normalizers, more="fitted", numbers="rmsd_correction", **_FIT
        ),
    ),
    "element_references": (
        signature_schema(element_references.create_element_references),
        signature_schema(element_references.fit_linear_references, more="fitted", **_FIT),
    ),
}
FITTED = make_schema(scales="mean", spreads="rmsd stdev")  # values of a target that `fit` keeps
SCHEDULER = make_schema(
    "lambda_type",
    numbers="decay_rate epochs lr",
    positive="warmup_epochs",
    not_negative="warmup_factor lr_min_factor",
    sequences="decay_epochs",
)
OPTIM = make_schema(
    "dens morered watch optimizer optimizer_params scheduler scheduler_params "
    "load_balancing_on_error load_datasets_and_model_then_exit checkpoint_format "
    # older forms
    "loss_energy loss_force loss_forces lr_milestones "
    "use_denoising_pos denoising_pos_params denoising_pos_coefficient",
    numbers="lr_gamma warmup_steps warmup_factor",
    counts="batch_size eval_batch_size max_epochs eval_every",
    indices="num_workers",
    intervals="checkpoint_every",
    positive="lr_initial",
    optional_positive="clip_grad_norm",
    not_negative="weight_decay energy_coefficient force_coefficient",
    decays="ema_decay",
    balancings="load_balancing",
    bases=(StepSettings,),
)

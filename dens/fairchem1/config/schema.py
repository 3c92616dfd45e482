"""Schemas of the sections of a training config: what fairchem-core 1.10 and dens read of each.

They say which keys are known and which must be numbers. Sections whose keys depend on a class that
the config names (backbone, head, optimizer, scheduler) are made from its signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from numbers import Real
from typing import Any, Literal

from fairchem.core.common.relaxation.optimizers.lbfgs_torch import LBFGS
from fairchem.core.modules.normalization import element_references, normalizer
from pydantic import BaseModel, ConfigDict, create_model

from dens.data.checked import BadRecordSettings
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


def make_schema(
    others: str = "", numbers: str = "", bases: tuple[type[BaseModel], ...] = ()
) -> type[BaseModel]:
    """Make the schema of a section from the names of its keys, separated by spaces.

    Args:
        others: keys whose values may be anything.
        numbers: keys whose values must be numbers.
        bases: schemas whose keys belong to the section too.
    """
    fields = {name: (Any, setting("anything", "", default=None)) for name in others.split()}
    for name in numbers.split():
        # some options of schedulers may also be lists, of a number for each group of parameters
        fields[name] = (Real | list | None, setting("a number, or null", "", default=None))
    return create_model("Section", __base__=(*bases, _Section), **fields)


@cache
def signature_schema(
    function: Callable[..., Any], *, more: str = "", without: str = ""
) -> type[BaseModel]:
    """Make the schema of a section that is passed on to a function as keyword arguments.

    Args:
        function: its arguments that default to a number must be numbers.
        more: further keys.
        without: arguments that the caller gives itself.
    """
    found = inspect.signature(function).parameters.values()
    found = [p for p in found if p.name not in without.split() and p.kind != p.VAR_KEYWORD]
    numbers = [p.name for p in found if type(p.default) in (int, float)]
    others = [p.name for p in found if p.name not in numbers]
    return make_schema(" ".join([*others, more]), " ".join(numbers))


def model_keys(model_class: type) -> tuple[list[str], bool]:
    """List the keyword arguments of a model class, and tell whether it may take others.

    ``**kwargs`` are taken to be those of the next class in the order of inheritance. That is
    certain for classes of fairchem and dens only.
    """
    names, open_ended = [], False
    classes = model_class.__mro__
    if EquiformerV2DeNS in classes:  # it passes them on to its backbone
        classes = classes[: classes.index(EquiformerV2DeNS) + 1] + EquiformerV2Backbone.__mro__
    for cls in classes:
        if "__init__" not in vars(cls):
            continue
        found = list(inspect.signature(cls.__init__).parameters.values())[1:]
        names += [p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if all(p.kind != p.VAR_KEYWORD for p in found):
            break
        open_ended |= not is_known_class(cls)
    return names, open_ended


def is_known_class(cls: type) -> bool:
    """Tell whether a class is fairchem's or ours, so that all the settings it reads are known."""
    return cls.__module__.split(".")[0] in ("fairchem", "dens")


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
    "relaxation_steps relaxation_fmax num_relaxation_batches",
)
RELAX_OPT = signature_schema(LBFGS, more="name", without="optimizable_batch")
OUTPUT = make_schema(
    "level property irrep_dim parent decomposition train_on_free_atoms eval_on_free_atoms "
    "prediction_dtype"
)
LOSS = make_schema("fn reduction", "coefficient")
METRICS = make_schema("metrics primary_metric")
LOGGER = make_schema("name project entity group watch log_weight_table quiet")
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
    "seed max_atoms max_atom first_n sample_n shard total_shards "
    "target_mean target_std grad_target_mean grad_target_std",
)
TRANSFORMS = make_schema("normalizer element_references decompose_tensor")
SCALES = {  # settings of a target, and of `fit`
    "normalizer": (
        signature_schema(normalizer.create_normalizer),
        signature_schema(normalizer.fit_normalizers, more="fitted", without="dataset"),
    ),
    "element_references": (
        signature_schema(element_references.create_element_references),
        signature_schema(
            element_references.fit_linear_references, more="fitted", without="dataset"
        ),
    ),
}
SCHEDULER = make_schema(
    "lambda_type decay_epochs", "warmup_factor warmup_epochs lr_min_factor decay_rate epochs lr"
)
OPTIM = make_schema(
    "dens watch optimizer optimizer_params scheduler scheduler_params load_balancing "
    "load_balancing_on_error load_datasets_and_model_then_exit checkpoint_format "
    # older forms
    "loss_energy loss_force loss_forces lr_milestones "
    "use_denoising_pos denoising_pos_params denoising_pos_coefficient",
    "batch_size eval_batch_size num_workers lr_initial weight_decay max_epochs clip_grad_norm "
    "ema_decay eval_every checkpoint_every "
    # older forms
    "energy_coefficient force_coefficient lr_gamma warmup_steps warmup_factor",
    bases=(StepSettings,),
)

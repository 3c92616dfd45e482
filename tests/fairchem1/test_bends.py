"""Test each entry of the list of changes to fairchem, and that the list is complete."""

import ast
import collections
import copy
import pickle
import runpy
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairchem.core import _cli
from fairchem.core.common import gp_utils
from fairchem.core.common.registry import registry
from fairchem.core.common.relaxation import ml_relaxation
from fairchem.core.common.utils import create_grid
from fairchem.core.datasets import lmdb_dataset
from fairchem.core.models.equiformer_v2 import transformer_block
from fairchem.core.models.equiformer_v2.so2_ops import SO2_Convolution
from fairchem.core.models.equiformer_v2.so3 import CoefficientMappingModule, SO3_Embedding
from fairchem.core.trainers import base_trainer, ocp_trainer
from helpers.paths import ROOT
from helpers.structures import make_batch
from helpers.trainers import BACKBONE, DENS

from dens import EquiformerV2Backbone, ForceHead
from dens.fairchem1 import describe_run
from dens.fairchem1 import launch as launcher
from dens.fairchem1.bends import BENDS
from dens.fairchem1.data.safe_lmdb import LmdbDataset
from dens.fairchem1.model import no_edges
from dens.fairchem1.model.graph_parallel import sum_shared_gradients
from dens.fairchem1.train.logger import keep_logs
from dens.fairchem1.train.relaxation import SafeLBFGS, safe_lbfgs
from dens.patching import replaced
from dens.runs.terminal.output import VERBOSE
from dens.runs.terminal.progress import follow

FOLDER = ROOT / "dens" / "fairchem1"
TESTED = {  # in another file
    ("compat.py", "sys.modules"): "test_all_of_fairchem_imports_and_pyg_is_not_deceived",
    ("compat.py", "special"): "test_sph_harm_where_scipy_has_none",
    ("compat.py", "torch.serialization"): "test_saved_normalizers_load_as_fairchem_loads_them",
    ("compat.py", "batch"): "test_fairchem_relaxes_with_lbfgs",
}


def shows(file: str, owner: str):
    """Mark the test of an entry of the list."""

    def mark(test):
        TESTED[file, owner] = test.__name__
        return test

    return mark


def everywhere(node: ast.AST) -> str | None:
    """The owner that a statement changes, for changes that no file of dens may hide."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "replaced":
        return ast.unparse(node.args[0])
    if isinstance(node, ast.Attribute) and node.attr == "__globals__":
        return "__globals__"
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return "__class__" if node.attr == "__class__" else None
    return None


def in_the_adapter(node: ast.AST, imported: set[str]) -> str | None:
    """The owner that a statement changes, if it is a module or a class of another package."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_safe_globals"):
        return ast.unparse(node.func.value)
    if not isinstance(getattr(node, "ctx", None), ast.Store) or isinstance(node, ast.Name):
        return None
    owner = ast.unparse(node.value) if hasattr(node, "value") else ""
    if isinstance(node, ast.Subscript):
        return owner if owner == "sys.modules" else None
    # sys.argv, for a script that runs in this process, is nobody else's
    known = owner in imported - {"sys"} or getattr(node, "attr", None) == "__abstractmethods__"
    return owner if known else None


def changes(path: Path) -> set[tuple[str, str]]:
    """The file and the owners of attributes that its code replaces."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imports = [node.names for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {alias.asname or alias.name for names in imports for alias in names} | {"special"}
    inside = path.is_relative_to(FOLDER)
    where = path.relative_to(FOLDER if inside else FOLDER.parent).as_posix()
    owners = {everywhere(node) or (inside and in_the_adapter(node, imported)) for node in nodes}
    return {(where, owner) for owner in owners if owner}


def test_the_lists_are_complete():
    """That of this host, and that of fairchem-core 2, which is not installed beside it."""
    files = [path for path in FOLDER.parent.rglob("*.py") if path.name != "patching.py"]
    second = FOLDER.parent / "fairchem2"
    listed = runpy.run_path(str(second / "bends.py"))["BENDS"]
    listed = {(f"{second.name}/{file}", owner) for file, owner in listed}
    assert set().union(*map(changes, files)) == set(BENDS) | listed


def test_each_entry_is_tested():
    assert set(TESTED) == set(BENDS)
    code = (ROOT / "tests" / "fairchem1" / "test_compat.py").read_text()
    for name in TESTED.values():
        assert name in globals() or f"def {name}(" in code


@shows("launch.py", "_cli")
def test_fairchems_command_line_is_restored(monkeypatch):
    names = ("build_config", "create_grid", "Runner", "runner_wrapper", "LaunchConfig")
    stock, seen = {name: getattr(_cli, name) for name in names}, {}

    def main(*_):
        seen.update({name: getattr(_cli, name) for name in names})
        raise KeyboardInterrupt

    monkeypatch.setattr(_cli, "main", main)
    with pytest.raises(KeyboardInterrupt):
        launcher.launch(*launcher.parse_args(["--config", "c.yml"]))
    assert all(seen[name] is not stock[name] for name in names)
    assert all(getattr(_cli, name) is stock[name] for name in names)


@shows("launch.py", "collections")
def test_sweeps_fail_in_stock_fairchem(tmp_path):
    sweep = tmp_path / "sweep.yml"
    sweep.write_text("seed: [1, 2]\n")
    with pytest.raises(AttributeError, match="MutableMapping"):
        create_grid({"identifier": ""}, sweep)
    assert not hasattr(collections, "MutableMapping")


@shows("data/safe_lmdb.py", "__globals__")
def test_fairchems_data_sets_keep_their_pickle():
    for name in ("__init__", "__getitem__"):
        stock = getattr(lmdb_dataset.LmdbDataset, name)
        assert stock.__globals__["pickle"] is pickle
        ours = next(vars(c)[name] for c in LmdbDataset.__mro__[2:] if name in vars(c))
        assert ours.__code__ is stock.__code__
        assert ours.__globals__["pickle"] is not pickle


@shows("model/fast/layers.py", "__class__")
@shows("model/fast/output_heads.py", "__class__")
@shows("model/fast/replayed_blocks.py", "__class__")
def test_other_models_keep_their_classes():
    settings = {k: v for k, v in BACKBONE.items() if k != "name"}
    fast, stock = (
        EquiformerV2Backbone(**settings, fast=fast, cuda_graphs=fast) for fast in (True, False)
    )
    fast.head, stock.head = ForceHead(fast), ForceHead(stock)
    assert fast.state_dict().keys() == stock.state_dict().keys()
    kinds = {type(module) for module in stock.modules()}
    assert not {kind for kind in kinds if kind.__module__.startswith("dens.fairchem1.model.fast")}
    others = {kind.__module__ for kind in {type(module) for module in fast.modules()} - kinds}
    names = ("layers", "output_heads", "replayed_blocks")
    assert {f"dens.fairchem1.model.fast.{name}" for name in names} <= others


@shows("model/graph_parallel.py", "transformer_block")
def test_the_attention_uses_the_gather_that_sums_gradients():
    """Why: tests of ranks that share a graph fail with the stock gather."""
    sum_shared_gradients()
    gather = transformer_block.gp_utils.gather_from_model_parallel_region
    assert gather is gp_utils.gather_from_model_parallel_region_sum_grad
    assert gp_utils.gather_from_model_parallel_region is not gather
    code = transformer_block.SO2EquivariantGraphAttention.forward.__code__
    assert {"gp_utils", "gather_from_model_parallel_region"} <= set(code.co_names)


@shows("model/no_edges.py", "SO2_Convolution")
def test_the_stock_convolution_fails_without_edges():
    EquiformerV2Backbone(**BACKBONE, fast=False)
    assert SO2_Convolution.forward is no_edges._forward
    module = SO2_Convolution(2, 2, [1], [1], CoefficientMappingModule([1], [1]))
    x = SO3_Embedding(0, [1], 2, "cpu", torch.float32)
    x.set_embedding(torch.zeros(0, 4, 2))
    assert module(x, torch.zeros(0, 2)).embedding.shape == (0, 4, 2)
    with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
        no_edges._stock_forward(module, x, torch.zeros(0, 2))


@shows("train/logger.py", "registry")
def test_the_registry_is_restored():
    with suppress(KeyboardInterrupt), keep_logs():
        assert "get_logger_class" in vars(registry)
        raise KeyboardInterrupt
    assert "get_logger_class" not in vars(registry)


@shows("describe_run.py", "base_trainer")
@shows("describe_run.py", "ocp_trainer")
@shows("describe_run.py", "task")
def test_bars_of_evaluations_and_tasks_are_restored(tmp_path, monkeypatch):
    monkeypatch.delenv(VERBOSE, raising=False)
    stock = base_trainer.tqdm, ocp_trainer.tqdm
    config = {"run_dir": str(tmp_path), "logger": "wandb", "timestamp_id": "the-run"}
    with suppress(KeyboardInterrupt), describe_run.output_of_run(config):
        assert base_trainer.tqdm is ocp_trainer.tqdm is follow
        raise KeyboardInterrupt
    assert (base_trainer.tqdm, ocp_trainer.tqdm) == stock
    assert (tmp_path / "logs/wandb/the-run/host.log").exists()
    trainer = object.__new__(ocp_trainer.OCPTrainer)
    context = SimpleNamespace(task=SimpleNamespace(run=None), trainer=trainer)
    with (
        replaced(describe_run, new_trainer_context=lambda config: nullcontext(context)),
        describe_run.announcing(None)(config=config),
    ):
        assert context.task.run is not None
    assert context.task.run is None


@shows("train/relaxation.py", "ml_relaxation")
@shows("train/relaxation.py", "ocp_trainer")
def test_the_optimizer_of_relaxations_is_restored():
    stock = ml_relaxation.LBFGS, ocp_trainer.check_traj_files
    with suppress(KeyboardInterrupt), safe_lbfgs():
        assert ml_relaxation.LBFGS is SafeLBFGS
        assert ocp_trainer.check_traj_files is not stock[1]
        raise KeyboardInterrupt
    assert (ml_relaxation.LBFGS, ocp_trainer.check_traj_files) == stock


@shows("train/step_metrics.py", "self")
@shows("train/trainer.py", "self")
def test_the_targets_of_a_trainer_are_restored(new_trainer):
    trainer = new_trainer(dens={**DENS, "prob": 1.0})
    targets = trainer.output_targets
    before, batch = copy.deepcopy(targets), make_batch(3)
    batch.fixed[:] = 1  # so that no atom counts in the metrics
    trainer.model.train()
    trainer.step, trainer.epoch = 1, 0.25
    out = trainer._forward(batch)
    assert "noise" in out
    trainer._compute_loss(out, batch)
    trainer._compute_metrics(out, batch, trainer.evaluator, {})
    assert trainer.output_targets is targets
    assert targets == before


@shows("train/steps.py", "self.optimizer")
@shows("train/steps.py", "self")
@shows("train/steps.py", "base_trainer")
def test_a_trainer_is_restored_after_each_step(new_trainer, tmp_path):
    stock = base_trainer.save_checkpoint
    trainer = new_trainer(
        optim={"max_epochs": 1}, is_debug=False, run_dir=str(tmp_path), logger="tensorboard"
    )
    trainer.train(disable_eval_tqdm=True)
    assert "zero_grad" not in vars(trainer.optimizer)
    assert trainer.clip_grad_norm == 100
    assert base_trainer.save_checkpoint is stock
    assert list(tmp_path.rglob("checkpoint.pt"))
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in trainer.model.parameters())

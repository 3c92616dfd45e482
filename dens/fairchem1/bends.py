"""The list of all places where dens changes fairchem-core 1.10 or its dependencies in memory.

Imports nothing of fairchem, but each entry is about it. A test looks for such places in the code,
and has a test for each entry: that the change is undone, or that it is needed.
"""

from __future__ import annotations

# (file in this folder, owner of the attributes replaced): which attributes, when and why
BENDS = {
    ("compat.py", "sys.modules"): "torch_scatter and torch_sparse, if they are not installed: "
    "fairchem imports them at start-up",
    ("compat.py", "special"): "sph_harm, if SciPy lacks it: fairchem imports it",
    ("compat.py", "torch.serialization"): "allow-list: PyTorch 2.6 refuses fairchem's normalizers",
    ("compat.py", "batch"): "__abstractmethods__: with ASE 3.26 no relaxation could start",
    (
        "describe_run.py",
        "base_trainer",
    ): "tqdm while a rank runs: no bars of several ranks, none in a file",
    ("describe_run.py", "ocp_trainer"): "tqdm, likewise",
    ("describe_run.py", "task"): "run of a run's task: print a header before, and a table after it",
    ("launch.py", "_cli"): "build_config, create_grid, Runner, runner_wrapper and LaunchConfig in "
    "main: check configs, import dens before fairchem in each rank, choose a free port; "
    "new_trainer_context while a rank runs: to find its task",
    ("launch.py", "collections"): "MutableMapping in create_grid: Python 3.10 removed it",
    ("data/safe_lmdb.py", "__globals__"): "pickle in copies of methods: restricted unpickling",
    (
        "model/fast/layers.py",
        "__class__",
    ): "classes of modules of our own models: a faster forward",
    ("model/fast/output_heads.py", "__class__"): "likewise, in heads",
    ("model/fast/replayed_blocks.py", "__class__"): "the list of blocks, likewise: all run as one",
    ("model/graph_parallel.py", "transformer_block"): "gp_utils, from the first trainer on: stock "
    "attention loses gradients of the atoms of other ranks",
    ("model/no_edges.py", "SO2_Convolution"): "forward, from the first model of dens on: stock "
    "EquiformerV2 fails where no atom has a neighbour",
    ("train/logger.py", "registry"): "get_logger_class while a rank runs: keep the log of a run",
    ("train/relaxation.py", "ml_relaxation"): "LBFGS in relaxations: the stock one steps uphill",
    (
        "train/relaxation.py",
        "ocp_trainer",
    ): "check_traj_files in relaxations: it names files by sid",
    ("train/step_metrics.py", "self"): "output_targets in metrics: no atoms have no average; on a "
    "GPU device, normalizers and elementrefs: metrics are computed on the host",
    ("train/steps.py", "self.optimizer"): "zero_grad in _backward: keep micro-batch gradients",
    ("train/steps.py", "self"): "clip_grad_norm in _backward: a hook clips and finds non-finite",
    ("train/steps.py", "base_trainer"): "save_checkpoint in save: write atomically",
    ("train/trainer.py", "self"): "output_targets in a corrupted forward pass: return the noise",
}

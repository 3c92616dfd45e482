from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.paths import ROOT

from dens.fairchem1 import compat

NAMES = ("torch_scatter", "torch_scatter.utils", "torch_sparse")
REDUCTIONS = {
    "sum": lambda entries: sum(entries),
    "add": lambda entries: sum(entries),
    "mean": lambda entries: sum(entries) / len(entries),
    "mul": lambda entries: torch.stack(entries).prod(),
    "min": lambda entries: torch.stack(entries).amin(),
    "max": lambda entries: torch.stack(entries).amax(),
}


def scatter_loop(src, index, dim, dim_size, reduce):
    """Scatter one entry at a time; ``index`` has the shape of ``src``."""
    groups = {}
    for place in itertools.product(*map(range, src.shape)):
        goal = list(place)
        goal[dim] = int(index[place])
        groups.setdefault(tuple(goal), []).append(src[place])
    size = list(src.shape)
    size[dim] = dim_size
    empty = torch.tensor(1.0 if reduce == "mul" else 0.0, dtype=src.dtype)
    entries = [
        REDUCTIONS[reduce](groups[goal]) if goal in groups else empty
        for goal in itertools.product(*map(range, size))
    ]
    return torch.stack(entries).reshape(size)


def value_and_gradient(function, src, weights):
    src = src.clone().requires_grad_(True)
    out = function(src)
    (out * weights).sum().backward()
    return out.detach(), src.grad


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(
    ("shape", "dim"), [((9,), -1), ((9, 3), 0), ((2, 9), 1), ((2, 9, 3), 1), ((2, 9, 3), -2)]
)
@pytest.mark.parametrize("dim_size", [None, 8])
def test_scatter_equals_a_plain_loop(reduce, shape, dim, dim_size):
    generator = torch.Generator().manual_seed(0)
    src = torch.randn(shape, generator=generator, dtype=torch.float64)
    index = torch.tensor([4, 0, 2, 4, 4, 0, 5, 2, 0])  # unsorted, and nothing goes to 1 and 3
    size = dim_size or 6
    line = [1] * len(shape)
    line[dim] = -1
    full = index.reshape(line).expand(shape)
    weights_shape = list(shape)
    weights_shape[dim] = size
    weights = torch.randn(weights_shape, generator=generator, dtype=torch.float64)

    expected = value_and_gradient(lambda s: scatter_loop(s, full, dim, size, reduce), src, weights)
    for given in (index, full):
        out = value_and_gradient(
            lambda s, i=given: compat.scatter(s, i, dim, None, dim_size, reduce), src, weights
        )
        torch.testing.assert_close(out, expected)


def test_scatter_defaults_to_the_sum_along_the_last_dimension():
    src = torch.arange(6.0).reshape(2, 3)
    out = compat.scatter(src, torch.tensor([1, 0, 1]))
    assert torch.equal(out, torch.tensor([[1.0, 2.0], [4.0, 8.0]]))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_scatter_of_nothing(reduce):
    src, index = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert compat.scatter(src, index, dim=0, reduce=reduce).shape == (0, 3)
    out = compat.scatter(src, index, dim=0, dim_size=2, reduce=reduce)
    assert torch.equal(out, torch.full((2, 3), 1.0 if reduce == "mul" else 0.0))


def test_scatter_mean_counts_in_integers():
    index = torch.zeros(1000, dtype=torch.long)
    ones = torch.ones(1000, dtype=torch.bfloat16)
    total = compat.scatter(ones, index, reduce="sum")
    assert compat.scatter(ones, index, reduce="mean") == total / 1000
    assert (
        compat.scatter(torch.tensor([-1, -2]), torch.zeros(2, dtype=torch.long), reduce="mean")
        == -2
    )


def test_tied_entries_share_the_gradient():
    src = torch.tensor([2.0, 1.0, 2.0], requires_grad=True)
    compat.scatter(src, torch.zeros(3, dtype=torch.long), reduce="max").sum().backward()
    assert torch.equal(src.grad, torch.tensor([0.5, 0.0, 0.5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduce": "std"}, "reduce must be sum, add, mean, mul, min or max, got 'std'"),
        ({"out": torch.zeros(1)}, "out must be None.*torch-scatter"),
    ],
)
def test_scatter_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        compat.scatter(torch.ones(2), torch.zeros(2, dtype=torch.long), **arguments)


@pytest.mark.parametrize(
    ("index_shape", "shape", "dim", "view"),
    [
        ((3,), (3, 2), 0, (3, 1)),
        ((2,), (3, 2), -1, (1, 2)),
        ((3,), (2, 3, 4), 1, (1, 3, 1)),
        ((2, 3), (2, 3, 4), 1, (2, 3, 1)),
    ],
)
def test_broadcast(index_shape, shape, dim, view):
    index = torch.arange(int(np.prod(index_shape))).reshape(index_shape)
    expected = index.reshape(view).expand(shape)
    assert torch.equal(compat.broadcast(index, torch.zeros(shape), dim), expected)


@pytest.fixture
def stand_ins(monkeypatch):
    """Call ``install()`` as if the packages were missing; undo it afterwards."""
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)  # remembers what was there
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(compat, "_available", lambda name: name in sys.modules)
    compat.install()
    return SimpleNamespace(**{name.replace(".", "_"): sys.modules[name] for name in NAMES})


def test_stand_ins_look_like_modules(stand_ins):
    for name in NAMES:
        assert importlib.util.find_spec(name).name == name
        assert inspect.getmembers(sys.modules[name])
    assert inspect.getsource(stand_ins.torch_scatter.scatter).startswith("def scatter")
    assert stand_ins.torch_scatter.utils.broadcast is compat.broadcast
    assert not hasattr(stand_ins.torch_scatter, "no_such_name")


def test_install_again_changes_nothing(stand_ins):
    compat.install()
    assert [sys.modules[name] for name in NAMES] == list(vars(stand_ins).values())


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [
        ("torch_scatter", "segment_csr", "torch-scatter"),
        ("torch_scatter", "segment_coo", "torch-scatter"),
        ("torch_sparse", "SparseTensor", "torch-sparse"),
    ],
)
def test_unsupported_names_raise_when_used(stand_ins, module, name, package):
    placeholder = getattr(sys.modules[module], name)
    message = rf"{module}\.{name} needs the package {package}: pip install .*{package}"
    with pytest.raises(ImportError, match=message):
        placeholder(torch.zeros(1))
    with pytest.raises(AttributeError, match=message):
        placeholder.from_dense(torch.zeros(1))
    assert not isinstance(torch.zeros(1), placeholder)


def run_python(code: str, path: str = "") -> dict:
    """Run code in a new interpreter with ``path`` first on its path; parse the JSON it prints."""
    root = str(ROOT)
    path = os.pathsep.join(filter(None, [path, root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_all_of_fairchem_imports_and_pyg_is_not_deceived():
    flags = run_python(
        "from dens.fairchem1 import compat\n"
        "compat.install()\n"
        "from fairchem.core.common.utils import setup_imports\n"
        "setup_imports()\n"
        "import json, torch_geometric.typing as pyg\n"
        "print(json.dumps([pyg.WITH_TORCH_SCATTER, pyg.WITH_TORCH_SPARSE]))\n"
    )
    installed = {
        dist.metadata["Name"].replace("-", "_") for dist in importlib.metadata.distributions()
    }
    assert flags == ["torch_scatter" in installed, "torch_sparse" in installed]


@pytest.mark.slow
def test_installed_packages_are_left_alone(tmp_path):
    (tmp_path / "torch_scatter.py").write_text("scatter = segment_csr = segment_coo = 'real'\n")
    (tmp_path / "torch_sparse.py").write_text("class SparseTensor: ...\nSparseStorage = 'real'\n")
    code = (
        "from dens.fairchem1 import compat\n"
        "compat.install()\n"
        "import json, torch_scatter, torch_sparse\n"
        "print(json.dumps([torch_scatter.__file__, torch_sparse.__file__]))\n"
    )
    files = run_python(code, path=str(tmp_path))
    assert files == [str(tmp_path / "torch_scatter.py"), str(tmp_path / "torch_sparse.py")]


def test_sph_harm_where_scipy_has_none(monkeypatch):
    special = pytest.importorskip("scipy.special")
    monkeypatch.setattr(special, "sph_harm", None, raising=False)  # remembers what was there
    monkeypatch.delattr(special, "sph_harm")
    compat.install()
    azimuth, polar = 0.3, 1.1
    expected = -np.sqrt(3 / (8 * np.pi)) * np.sin(polar) * np.exp(1j * azimuth)
    assert special.sph_harm(1, 1, azimuth, polar) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")
def test_saved_normalizers_load_as_fairchem_loads_them(tmp_path):
    from fairchem.core.modules.normalization.element_references import LinearReferences
    from fairchem.core.modules.normalization.normalizer import create_normalizer

    compat.repair()
    modules = {
        "energy": create_normalizer(mean=-1.5, rmsd=2.0),
        "references": LinearReferences(torch.arange(4.0)),
    }
    torch.save(modules, tmp_path / "normalizers.pt")
    loaded = torch.load(tmp_path / "normalizers.pt")
    assert loaded["energy"].norm(torch.tensor(2.5)) == 2.0
    assert torch.equal(loaded["references"].element_references, torch.arange(4.0))


class Springs:
    """Fake trainer for the relaxer: springs pull each atom to its own place."""

    device = torch.device("cpu")

    def __init__(self, goal: torch.Tensor, stiffness: torch.Tensor):
        self.goal, self.stiffness = goal, stiffness

    def predict(self, batch, per_image, disable_tqdm):
        offset = self.goal - batch.pos
        energy = batch.pos.new_zeros(len(batch)).index_add(
            0, batch.batch, (self.stiffness * offset**2).sum(1) / 2
        )
        return {"energy": energy, "forces": self.stiffness * offset}


def test_fairchem_relaxes_with_lbfgs():
    from fairchem.core.common.relaxation.ml_relaxation import ml_relax
    from torch_geometric.data import Batch, Data

    compat.repair()
    generator = torch.Generator().manual_seed(0)
    structures = [
        Data(
            pos=torch.randn(n, 3, generator=generator),
            atomic_numbers=torch.full((n,), 6),
            cell=10 * torch.eye(3)[None],
            pbc=torch.ones(1, 3, dtype=torch.bool),
            natoms=n,
            fixed=torch.arange(n) == 0,
            sid=str(n),
        )
        for n in (2, 5, 3)
    ]
    batch = Batch.from_data_list(structures)
    goal = batch.pos + 0.3 * torch.randn(batch.pos.shape, generator=generator)
    stiffness = 1 + torch.rand(len(goal), 1, generator=generator)

    relaxed = ml_relax(batch, Springs(goal, stiffness), steps=100, fmax=1e-3)
    free = batch.fixed == 0
    assert torch.equal(relaxed.pos[~free], batch.pos[~free])
    torch.testing.assert_close(relaxed.pos[free], goal[free], atol=1e-3, rtol=0)

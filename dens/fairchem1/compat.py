"""Import and run fairchem-core 1.10 although some of its dependencies are missing or newer.

fairchem-core 1.10 imports at start-up:

* ``torch_scatter`` and ``torch_sparse``, which have no wheels and compile for minutes. Training
  and relaxing with EquiformerV2 needs one function of them, ``scatter``.
* ``scipy.special.sph_harm``, which SciPy 1.17 removed.

:func:`install` supplies stand-ins for these, if they are missing. Call it before fairchem is
imported. :func:`repair` restores what newer versions of other dependencies broke. Call it
afterwards. This file imports nothing of dens or fairchem, so that it can be used alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch


def install() -> None:
    """Supply stand-ins for the packages that fairchem-core 1.10 imports and that are missing.

    Installed packages are left alone, and a second call changes nothing.
    """
    # PyG calls whatever it can import under these names as the compiled packages. Imported first,
    # it finds nothing and keeps to its own PyTorch code.
    importlib.import_module("torch_geometric.typing")
    if not _available("torch_scatter"):
        _register("torch_scatter", {"scatter": scatter}, missing=("segment_coo", "segment_csr"))
        _register("torch_scatter.utils", {"broadcast": broadcast})
    if not _available("torch_sparse"):
        _register("torch_sparse", {}, missing=("SparseTensor",))
    _supply_sph_harm()


def repair() -> None:
    """Restore what newer versions of its dependencies broke in fairchem-core 1.10.

    * PyTorch 2.6: ``torch.load`` refuses classes that are not on its allow-list. fairchem's
      ``normalizers.pt`` and ``element_references.pt`` hold two of fairchem's own.
    * ASE 3.26: the abstract base class of fairchem's batches under relaxation requires methods
      that only the optimizers of ASE call. fairchem relaxes with its own LBFGS.
    """
    modules = "fairchem.core.modules.normalization"
    normalizer = importlib.import_module(f"{modules}.normalizer")
    references = importlib.import_module(f"{modules}.element_references")
    torch.serialization.add_safe_globals([normalizer.Normalizer, references.LinearReferences])
    relaxation = importlib.import_module("fairchem.core.common.relaxation.optimizable")
    for batch in (relaxation.OptimizableBatch, relaxation.OptimizableUnitCellBatch):
        batch.__abstractmethods__ = frozenset()


def scatter(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce the entries of ``src`` that share an index: ``torch_scatter.scatter``.

    Args:
        src: any shape, any unit.
        index: int64, destination of each entry along ``dim``; expanded by :func:`broadcast`.
        dim: dimension of ``src`` to reduce.
        out: not supported; callers may pass the later arguments by position.
        dim_size: size of the result along ``dim``; ``index.max() + 1`` by default.
        reduce: ``sum`` (or ``add``), ``mean``, ``mul``, ``min`` or ``max``.

    Returns:
        Shape of ``src`` with ``dim_size`` along ``dim``; empty places are 1 for ``mul``, else 0.
        ``mean`` of integers rounds down. Ties for ``min`` or ``max`` share the gradient equally.

    Raises:
        ValueError: unknown ``reduce``, or ``out`` is given.
    """
    if out is not None:
        raise ValueError("scatter: out must be None: that needs the package torch-scatter")
    dim %= src.dim()
    if dim_size is None:
        dim_size = int(index.max()) + 1 if index.numel() else 0
    index = broadcast(index, src, dim)
    zeros = src.new_zeros((*src.shape[:dim], dim_size, *src.shape[dim + 1 :]))
    if reduce in ("sum", "add"):
        return zeros.scatter_add(dim, index, src)
    if reduce == "mean":
        return _mean(zeros.scatter_add(dim, index, src), index, dim)
    if reduce == "mul":
        return torch.ones_like(zeros).scatter_reduce(dim, index, src, "prod")
    if reduce in ("min", "max"):
        return zeros.scatter_reduce(dim, index, src, f"a{reduce}", include_self=False)
    raise ValueError(f"scatter: reduce must be sum, add, mean, mul, min or max, got {reduce!r}")


def _mean(total: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    # counted in integers: bfloat16 cannot count beyond 256
    count = torch.zeros_like(total, dtype=index.dtype)
    count = count.scatter_add(dim, index, torch.ones_like(index)).clamp(min=1)
    return total / count if total.is_floating_point() else total // count


def broadcast(src: torch.Tensor, other: torch.Tensor, dim: int) -> torch.Tensor:
    """Expand ``src`` to the shape of ``other``: ``torch_scatter.utils.broadcast``.

    A one-dimensional ``src`` runs along dimension ``dim`` of ``other``; any other is aligned with
    the leading dimensions of ``other``.
    """
    if src.dim() == 1:
        src = src[(None,) * (dim % other.dim())]
    return src[(...,) + (None,) * (other.dim() - src.dim())].expand_as(other)


def _available(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _register(name: str, members: dict[str, object], missing: tuple[str, ...] = ()) -> None:
    """Put a module with ``members`` into ``sys.modules``; calls of ``missing`` names raise."""
    module = ModuleType(name, doc="Stand-in supplied by dens.fairchem1.compat.")
    # With a spec, importlib.util.find_spec(name) answers instead of raising.
    module.__spec__ = ModuleSpec(name, loader=None, origin=__name__, is_package="." not in name)
    module.__path__ = []
    module.__dict__.update(members)
    module.__dict__.update({member: _placeholder(name, member) for member in missing})
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


class _Missing(type):
    """Metaclass of placeholders: classes that can be imported, but not called."""

    def __call__(cls, *args: object, **kwargs: object) -> None:
        raise ImportError(cls.__doc__)

    def __getattr__(cls, name: str) -> None:
        raise AttributeError(cls.__doc__)


def _placeholder(module: str, name: str) -> type:
    package = module.replace("_", "-")
    message = (
        f"{module}.{name} needs the package {package}: "
        f"pip install --no-build-isolation {package} (compiles for some minutes)"
    )
    return _Missing(name, (), {"__module__": module, "__doc__": message})


def _supply_sph_harm() -> None:
    special = importlib.import_module("scipy.special")
    if not hasattr(special, "sph_harm"):
        # The order of arguments that SciPy documents for the move from sph_harm to sph_harm_y.
        special.sph_harm = lambda m, n, theta, phi: special.sph_harm_y(n, m, phi, theta)

"""Metrics: ratios that add up over batches and ranks, and the table of all that a run logs."""

from __future__ import annotations

from typing import Literal, NamedTuple

FORCES_MAE, ENERGY_MAE, STRESS_MAE = "forces_mae", "energy_mae", "stress_mae"
NOISE_MAE, NOISE_COSINE = "denoising_pos_mae", "denoising_pos_cosine"
NOISE_EXPLAINED = "denoising_pos_explained_variance"
NOISY_ENERGY_MAE, NOISY_FORCES_MAE = "denoising_energy_mae", "denoising_forces_mae"
LEVEL_MAE = "denoising_level_mae"
RELAXED_RMSD, RELAX_CALLS = "relaxed_rmsd", "relax_calls"
GRADIENT_SHARE, LOSS_TERM = "gradient_share_", "loss_"  # families: the name of a loss term follows

GROUPS = ("S2EF", "Denoising", "Optimisation", "System")
_FORCES_HIDDEN = "/no_forces"


class Ratio(NamedTuple):
    """A mean kept as ``total / weight``, so that parts of it from batches or ranks can be added.

    >>> (Ratio(1.0, 2) + Ratio(5.0, 2)).value
    1.5
    """

    total: float
    weight: float

    def __add__(self, other: Ratio) -> Ratio:  # type: ignore[override]  # sums, joins no tuples
        return Ratio(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float:
        """The mean; the weight must not be zero."""
        return self.total / self.weight


class Metric(NamedTuple):
    """An entry of :data:`METRICS`: how a logged quantity is named, shown and judged."""

    name: str  # as logged, without the split; the prefix of the names for a family
    title: str  # for a family with {} for the rest of the name
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    group: str = "S2EF"
    short: str = ""  # title in the progress bar, which leaves out metrics without one
    order: int = 0

    @property
    def label(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def place(self) -> tuple[int, int, str]:
        """Sort key: by group, by row of the table, by name."""
        return GROUPS.index(self.group), self.order, self.name


_ROWS = (
    Metric("loss", "loss", "", "lower", "Optimisation", short="loss"),
    Metric(FORCES_MAE, "force MAE", "eV/Å", "lower", short="F"),
    Metric(ENERGY_MAE, "energy MAE", "eV", "lower", short="E"),
    Metric(STRESS_MAE, "stress MAE", "eV/Å³", "lower", short="S"),
    Metric("energy_per_atom_mae", "energy MAE per atom", "eV", "lower"),
    Metric("forces_cosine_similarity", "force cosine similarity", "", "higher"),
    Metric(NOISE_MAE, "noise MAE", "Å", "lower", "Denoising", short="noise"),
    Metric(NOISE_EXPLAINED, "noise variance explained", "", "higher", "Denoising"),
    Metric(NOISE_COSINE, "noise cosine similarity", "", "higher", "Denoising"),
    Metric(
        NOISY_ENERGY_MAE, "energy MAE, corrupted structures", "eV", "lower", "Denoising", "E noisy"
    ),
    Metric(NOISY_FORCES_MAE, "force MAE beside corrupted atoms", "eV/Å", "lower", "Denoising"),
    Metric(LEVEL_MAE, "noise level MAE", "Å", "lower", "Denoising", short="level"),
    Metric(RELAXED_RMSD, "RMSD after relaxation", "Å", "lower", "Denoising", short="RMSD"),
    Metric(RELAX_CALLS, "calls of a relaxation", "", "lower", "Denoising"),
    Metric("lr", "learning rate", group="Optimisation"),
    Metric("grad_norm", "gradient norm", group="Optimisation"),
    Metric("corrupted_fraction", "corrupted fraction", group="Optimisation"),
    Metric("prob", "probability of corruption", group="Optimisation"),
    Metric("denoising_coefficient", "weight of the noise", group="Optimisation"),
    Metric(GRADIENT_SHARE, "share of the gradient: {}", group="Optimisation"),
    Metric(LOSS_TERM, "loss term: {}", "", "lower", "Optimisation"),
    Metric("skipped_steps", "skipped steps", group="Optimisation"),
    Metric("atoms_per_second", "atoms per second", group="System"),
    Metric("gpu_memory_gib", "peak GPU memory", "GiB", group="System"),
    Metric("structures_per_second", "structures per second", group="System"),
    Metric("", "{}"),  # fairchem's other metrics
)
METRICS = {row.name: row._replace(order=i) for i, row in enumerate(_ROWS)}


def find_metric(name: str) -> Metric:
    """Look up a logged name in the table: also at a noise level, of a family, or fairchem's.

    A name with the forces hidden gives the same entry as the one without.

    >>> find_metric("denoising_pos_mae/sigma=0.10/no_forces").title
    'noise MAE, sigma = 0.10 Å'
    >>> find_metric("loss_noise").title, find_metric("energy_mse").better
    ('loss term: noise', 'lower')
    """
    name = name.removesuffix(_FORCES_HIDDEN)
    base, _, level = name.partition("/sigma=")
    metric = METRICS.get(base)
    if metric is None:
        families = (m for m in METRICS.values() if "{}" in m.title and base.startswith(m.name))
        metric = max(families, key=lambda m: len(m.name))
        rest = base.removeprefix(metric.name).replace("_", " ")
        better = metric.better or _better_by_function(base)
        metric = metric._replace(title=metric.title.format(rest), better=better)
    title = f"{metric.title}, sigma = {level} Å" if level else metric.title
    return metric._replace(name=name, title=title)


def _better_by_function(name: str) -> Literal["lower", "higher"] | None:
    """Judge a metric of fairchem's evaluator, whose name holds the function that computes it."""
    if any(function in name for function in ("cosine", "within_threshold")):
        return "higher"
    return "lower" if any(function in name for function in ("mae", "mse", "error")) else None


def at_level(name: str, sigma: float, *, forces_hidden: bool = False) -> str:
    """Name a metric measured at a noise level (Å), with the forces encoded or hidden.

    >>> at_level("denoising_pos_mae", 0.1), at_level("denoising_pos_mae", 0.025)
    ('denoising_pos_mae/sigma=0.10', 'denoising_pos_mae/sigma=0.025')
    """
    digits = f"{sigma:.4g}"
    label = max(digits, f"{sigma:.2f}", key=len)
    return f"{name}/sigma={label}" + _FORCES_HIDDEN * forces_hidden


def level_pattern(name: str, *, forces_hidden: bool = False) -> str:
    """Return a regular expression for the names of :func:`at_level` at any level."""
    return f"{name}/sigma=[0-9.]+" + _FORCES_HIDDEN * forces_hidden


def hides_forces(name: str) -> bool:
    """Whether a logged metric was measured with the forces hidden from the model."""
    return name.endswith(_FORCES_HIDDEN)

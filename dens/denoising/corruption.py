"""Corruption of structures: choose structures and atoms, add noise, attach the batch fields.

``sample_*`` functions draw random numbers from explicit generators, on the CPU; everything else is
deterministic. Shapes: ``n_atoms`` atoms of ``n_structures`` structures; ``batch`` holds the
structure of each atom, as in PyG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dens.denoising.config import DeNSConfig
from dens.fields import CORRUPTIBLE, DENOISING_FIELDS


@dataclass(frozen=True)
class Corruption:
    """A corrupted batch; ``pos - original == noise`` and ``noise[~noise_mask] == 0``, exactly."""

    pos: Tensor  # (n_atoms, 3) | Å, corrupted positions
    noise: Tensor  # (n_atoms, 3) | Å, displacement, zero outside C
    noise_mask: Tensor  # (n_atoms,) bool | the set C of corrupted atoms
    sigma: Tensor  # (n_structures,) | Å, zero for structures without an atom in C


class Draws(NamedTuple):
    """The random numbers of a corruption; they depend on the shape of the batch, on no setting."""

    batch_coin: Tensor  # () | in [0, 1), whether to corrupt, with ``granularity: batch``
    coins: Tensor  # (n_structures,) | in [0, 1), whether to corrupt each structure
    rungs: Tensor  # (n_structures,) | in [0, 1), position on the ladder of noise levels
    atoms: Tensor  # (n_atoms,) | in [0, 1), whether to move each atom
    unit_noise: Tensor  # (n_atoms, 3) | standard normal


def sample_draws(
    natoms: Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Draws:
    """Draw the random numbers of a batch from one generator, as many for each batch of a shape.

    Args:
        natoms: (n_structures,), number of atoms of each structure.
        dtype: precision of the noise.
    """
    n_structures, n_atoms = len(natoms), int(natoms.sum())
    uniform = torch.rand(1 + 2 * n_structures + n_atoms, generator=generator)
    coin, coins, rungs, atoms = uniform.split([1, n_structures, n_structures, n_atoms])
    noise = torch.randn(n_atoms, 3, generator=generator, dtype=dtype)
    return Draws(coin[0], coins, rungs, atoms, noise)


def sample_draws_by_structure(
    natoms: Tensor,
    generators: Iterable[torch.Generator],
    batch_generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Draws:
    """Draw the random numbers of each structure from its own generator.

    The noise of a structure then depends neither on its batch nor on its rank.

    Args:
        natoms: (n_structures,), number of atoms of each structure.
        generators: one for each structure.
        batch_generator: source of ``batch_coin``.
        dtype: precision of the noise.
    """
    parts = [
        sample_draws(n, g, dtype) for n, g in zip(natoms.cpu().split(1), generators, strict=True)
    ]
    _, *columns = zip(*parts, strict=True)
    batch_coin = torch.rand((), generator=batch_generator)
    return Draws(batch_coin, *(torch.cat(column) for column in columns))


def eligible_structures(
    config: DeNSConfig,
    *,
    forces: Tensor,
    batch: Tensor,
    natoms: Tensor,
    md: Tensor | None = None,
    stress: Tensor | None = None,
) -> Tensor:
    """Select the structures that may be corrupted; the others stay ordinary S2EF samples.

    Args:
        forces: (n_atoms, 3), eV/Å, of the original structures.
        batch: (n_atoms,), index of the structure of each atom.
        natoms: (n_structures,), number of atoms of each structure.
        md: (n_structures,) bool, whether a structure comes from molecular dynamics, or None.
        stress: (n_structures, 9), (n_structures, 3, 3) or (3 n_structures, 3), or None.

    Returns:
        (n_structures,) bool.

    Raises:
        ValueError: the config asks for a field (``md``, ``stress``) that is None.
    """
    ok = torch.ones(len(natoms), dtype=torch.bool, device=forces.device)
    for field, setting in config.required_fields.items():
        if {"md": md, "stress": stress}[field] is None:
            raise ValueError(
                f"{setting} = {getattr(config, setting)}, but the data have no field {field} "
                f"(optim.dens.{setting})"
            )
    if config.exclude_md and md is not None:
        ok &= ~md.view(-1).bool()
    if config.min_num_atoms is not None:
        ok &= natoms >= config.min_num_atoms
    if config.max_force_norm is not None:
        norm = torch.linalg.vector_norm(forces, dim=-1)
        largest = norm.new_zeros(len(natoms)).scatter_reduce(0, batch, norm, "amax")
        ok &= largest <= config.max_force_norm
    if config.max_mean_force_norm is not None:
        total = forces.new_zeros(len(natoms), 3).index_add(0, batch, forces)
        ok &= torch.linalg.vector_norm(total, dim=-1) <= config.max_mean_force_norm * natoms
    if config.max_stress_norm is not None:
        assert stress is not None  # it is required
        norm = torch.linalg.vector_norm(stress.reshape(len(natoms), -1), dim=-1)
        ok &= norm <= config.max_stress_norm
    return ok


def corrupt(
    pos: Tensor,
    batch: Tensor,
    natoms: Tensor,
    config: DeNSConfig,
    draws: Draws | torch.Generator,
    *,
    fixed: Tensor | None = None,
    eligible: Tensor | None = None,
) -> Corruption:
    r"""Corrupt a batch of structures (arXiv:2403.09549, section 3).

    .. math:: \tilde p_i = p_i + \epsilon_i,\quad \epsilon_i \sim N(0, \sigma_{s(i)}^2 I)
        \text{ for } i \in C, \qquad \epsilon_i = 0 \text{ otherwise}

    >>> from dens.denoising.config import parse_config
    >>> config = parse_config({"prob": 1.0, "denoising_coefficient": 10.0, "sigma": 0.1})
    >>> pos, batch, natoms = torch.zeros(3, 3), torch.tensor([0, 0, 1]), torch.tensor([2, 1])
    >>> fixed = torch.tensor([1, 0, 0])
    >>> made = corrupt(pos, batch, natoms, config, torch.Generator(), fixed=fixed)
    >>> made.noise_mask.tolist(), torch.equal(made.pos - pos, made.noise)
    ([False, True, True], True)

    Args:
        pos: (n_atoms, 3), Å; not modified.
        batch: (n_atoms,), index of the structure of each atom.
        natoms: (n_structures,), number of atoms of each structure.
        draws: the random numbers, or a generator to draw them from.
        fixed: (n_atoms,), nonzero for fixed atoms, see ``corrupt_fixed_atoms``; None is none.
        eligible: (n_structures,) bool, see :func:`eligible_structures`; None is all.

    Returns:
        The corrupted positions, the noise, the set C and each structure's sigma.
    """
    if isinstance(draws, torch.Generator):
        draws = sample_draws(natoms, draws, pos.dtype)
    draws = Draws(*(numbers.to(pos.device) for numbers in draws))
    n_structures = len(natoms)
    coins = draws.batch_coin if config.granularity == "batch" else draws.coins
    chosen = (coins < config.prob).expand(n_structures)
    sigmas = torch.tensor(config.sigmas, device=pos.device, dtype=pos.dtype)
    # the product may round up to the next integer
    sigma = sigmas[(draws.rungs * len(sigmas)).long().clamp(max=len(sigmas) - 1)]
    mask = draws.atoms < (1.0 if config.corrupt_ratio is None else config.corrupt_ratio)

    if eligible is not None:
        chosen = chosen & eligible
    mask = mask & chosen[batch]
    if config.corrupt_fixed_atoms is not True:
        held = torch.zeros_like(mask) if fixed is None else fixed != 0
        mask = mask & (held if config.corrupt_fixed_atoms == "only" else ~held)
    if config.strict_max_ratio is not None:
        within = _count(mask, batch, n_structures) <= config.strict_max_ratio * natoms
        mask = mask & within[batch]

    sigma = torch.where(_count(mask, batch, n_structures) > 0, sigma, 0)
    moved = torch.where(mask[:, None], pos + sigma[batch][:, None] * draws.unit_noise, pos)
    # the target is the displacement after rounding, so that moved - pos == noise is exact
    return Corruption(pos=moved, noise=moved - pos, noise_mask=mask, sigma=sigma)


def corrupt_batch(batch: Any, config: DeNSConfig, draws: Draws | torch.Generator) -> Corruption:
    """Corrupt the eligible structures of a PyG batch, which is not modified.

    Those that the field ``corruptible`` rules out, if the batch has it, stay clean as well. See
    :func:`eligible_structures` for errors, and :func:`corrupt`.
    """
    layout = {"batch": batch.batch, "natoms": batch.natoms}
    marks = {name: getattr(batch, name, None) for name in ("md", "stress")}
    ok = eligible_structures(config, forces=batch.forces, **layout, **marks)
    allowed = getattr(batch, CORRUPTIBLE.name, None)
    if allowed is not None:
        ok = ok & allowed
    return corrupt(batch.pos, config=config, draws=draws, fixed=batch.fixed, eligible=ok, **layout)


def _count(mask: Tensor, batch: Tensor, n_structures: int) -> Tensor:
    return mask.new_zeros(n_structures, dtype=torch.long).index_add(0, batch, mask.long())


class DenoisingFields(NamedTuple):
    """The fields of :data:`dens.fields.DENOISING_FIELDS`, in this order, of a corrupted batch."""

    noise: Tensor
    noise_mask: Tensor
    sigma: Tensor
    noise_forces: Tensor


def attach(batch: Any, corruption: Corruption, forces: Tensor) -> None:
    """Replace ``batch.pos`` by the corrupted positions and set the denoising fields of the batch.

    Args:
        batch: a PyG batch, or any object that takes attributes.
        forces: (n_atoms, 3), eV/Å, of the original structure.
    """
    batch.pos = corruption.pos
    encoded = torch.where(corruption.noise_mask[:, None], forces, 0)
    set_fields(batch, {**vars(corruption), "noise_forces": encoded})


def set_fields(batch: Any, values: Mapping[str, Tensor]) -> None:
    """Set the denoising fields of a batch, and ``batch.corrupted``: whether it has any in C.

    ``corrupted`` is a plain bool, since to ask the mask on a GPU again and again would stall it.
    """
    for field in DENOISING_FIELDS:
        setattr(batch, field.name, values[field.name])
    batch.corrupted = bool(values["noise_mask"].any())


def denoising_fields(batch: Any) -> DenoisingFields | None:
    """Return the denoising fields of a batch with a corrupted atom, or None for a clean batch."""
    corrupted = getattr(batch, "corrupted", None)
    if not isinstance(corrupted, bool):  # the fields were not set here, or collated since
        mask = getattr(batch, "noise_mask", None)
        corrupted = mask is not None and bool(mask.any())
    if not corrupted:
        return None
    return DenoisingFields(*(getattr(batch, field.name) for field in DENOISING_FIELDS))

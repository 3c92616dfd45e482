"""Relaxation by denoising of many structures in batches that are refilled as structures finish.

Why batches are refilled: structures differ by factors of ten in the calls that they need. Why each
has a random stream of its own: else its result would depend on when its neighbours finish. Why the
estimate is returned, and not the sampler's last positions: these still hold the noise of the level
at which it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dens.random import Stream
from dens.relax.config import DEFAULTS, RelaxSettings
from dens.relax.samplers import CONVERGED, REASONS, Reason, Sampler, StopRule, draw_unit_noise
from dens.relax.samplers import estimate as estimate_relaxed
from dens.relax.structures import Denoiser, Structure, Structures, centre


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The outcome of a relaxation.

    ``pos`` is the estimate of the relaxed structure from the last call, converged or not; where the
    model's output is not finite, the positions that it was asked for.
    """

    pos: Tensor  # (n_atoms, 3) float64 | Å, not wrapped into the cell
    reason: Reason  # why it stopped, see REASONS
    levels: tuple[int, ...]  # the level t of each call; the highest if a broken output has none
    sigmas: tuple[float, ...]  # Å | their sigmas
    moved: float  # Å | root mean square distance between start and end, over free atoms
    history: tuple[Tensor, ...] = ()  # (n_atoms, 3) of each call | Å, the positions asked for

    @property
    def converged(self) -> bool:
        """Whether it stopped for another reason than the limit of calls or a broken output."""
        return self.reason in CONVERGED

    @property
    def calls(self) -> int:
        """How often the denoiser was called."""
        return len(self.levels)

    @property
    def why(self) -> str:
        """The reason as a sentence."""
        return REASONS[self.reason]


@dataclass(eq=False)
class Walker:
    """A structure on its way."""

    number: int  # its number among all, which decides its random numbers
    structure: Structure
    pos: Tensor  # (n_atoms, 3) float64 | Å
    generator: torch.Generator
    estimate: Tensor | None = None  # (n_atoms, 3) float64 | Å, of the relaxed structure
    levels: list[int] = field(default_factory=list)  # t of each call
    history: list[Tensor] = field(default_factory=list)


class RelaxLoop:
    """The active batch of a relaxation and the queue from which it is refilled.

    A structure's result depends on the seed and its number only, not on its batch or its place in
    it, up to the rounding of the denoiser. Positions are never wrapped, fixed atoms never touched.

    Args:
        structures: the structures, valid for the denoiser; read as they are needed.
        denoiser: the model.
        settings: sampler, when to stop, size of batches.
        seed: of all random numbers.
        numbers: of the structures, by default 0, 1, 2, ...; they decide the random numbers.
        keep_history: whether results hold the positions of every call.

    Raises:
        ConfigError: the settings do not fit the levels of the denoiser.
    """

    def __init__(
        self,
        structures: Iterable[Structure],
        denoiser: Denoiser,
        settings: RelaxSettings,
        seed: int = 0,
        *,
        numbers: Iterable[int] | None = None,
        keep_history: bool = False,
    ) -> None:
        self.denoiser, self.settings, self.seed = denoiser, settings, seed
        defaults = getattr(denoiser, "defaults", DEFAULTS)
        self.sampler = Sampler(settings, denoiser.levels, defaults)
        self.stop_rule = StopRule(self.sampler)
        self.keep_history = keep_history
        named = enumerate(structures) if numbers is None else zip(numbers, structures, strict=True)
        self._queue = iter(named)
        self._next: Walker | None = None
        self.active: list[Walker] = []

    def __iter__(self) -> Iterator[tuple[int, Relaxed]]:
        """Relax all structures; give each with its number as it finishes."""
        while self.refill():
            yield from self.step()

    def refill(self) -> bool:
        """Add structures from the queue while they fit; tell whether any structure is active."""
        n_atoms = sum(len(walker.structure) for walker in self.active)
        while True:
            if self._next is None:
                self._next = self._start(next(self._queue, None))
            if self._next is None:
                return bool(self.active)
            n_atoms += len(self._next.structure)
            if self.active and n_atoms > self.settings.batch_atoms:
                return True
            self.active.append(self._next)
            self._next = None

    def step(self) -> list[tuple[int, Relaxed]]:
        """Call the denoiser and move the active structures; return those that have finished."""
        finished = []
        for walkers in self._groups():
            finished += self._step(walkers)
        done = {number for number, _ in finished}
        self.active = [walker for walker in self.active if walker.number not in done]
        return finished

    def _start(self, named: tuple[int, Structure] | None) -> Walker | None:
        if named is None:
            return None
        number, structure = named
        generator = Stream.RELAXATION.generator(self.seed, number)
        walker = Walker(number, structure, structure.pos, generator)
        if self.settings.start_level is not None:
            batch = Structures.collate([structure])
            noise = self.settings.start_level * self._unit_noise(batch, [walker])
            walker.pos = torch.where(structure.free[:, None], structure.pos + noise, structure.pos)
        return walker

    def _groups(self) -> list[list[Walker]]:
        """Split the active structures into those whose level is to be found and to be told."""
        new = [walker for walker in self.active if not walker.levels]
        if not self.sampler.counts_down or len(new) in (0, len(self.active)):
            return [self.active]
        return [new, [walker for walker in self.active if walker.levels]]

    def _step(self, walkers: Sequence[Walker]) -> list[tuple[int, Relaxed]]:
        batch = Structures.collate([w.structure for w in walkers], [w.pos for w in walkers])
        noise, level = self._ask(batch, walkers)
        unit_noise = self._unit_noise(batch, walkers) if self.sampler.is_random else None
        moved = self.sampler.step(batch.pos, noise, level, batch.batch, unit_noise)
        final = estimate_relaxed(batch.pos, noise, level, batch.batch, self.denoiser.levels)
        free, sizes = ~batch.fixed[:, None], batch.natoms.tolist()
        moved, final = (torch.where(free, new, batch.pos).split(sizes) for new in (moved, final))
        is_finite = [bool(own.isfinite().all()) for own in noise.split(sizes)]
        finished = []
        for i, walker in enumerate(walkers):
            walker.levels.append(int(level[i]))
            if self.keep_history:
                walker.history.append(walker.pos)
            walker.estimate = final[i] if is_finite[i] else walker.pos
            reason = self.stop_rule(walker.levels) if is_finite[i] else "not_finite"
            if reason is None:
                walker.pos = moved[i]
            else:
                finished.append((walker.number, self._outcome(walker, reason)))
        return finished

    def _ask(self, batch: Structures, walkers: Sequence[Walker]) -> tuple[Tensor, Tensor]:
        """Return the noise, (n_atoms, 3), zero for fixed atoms and centred; and the levels."""
        told = None
        if self.sampler.counts_down and walkers[0].levels:
            told = torch.tensor([walker.levels[-1] - 1 for walker in walkers])
        with torch.no_grad():
            noise, level = self.denoiser(batch, told)
        level = level.cpu() if told is None else told
        known = (level >= 0) & (level < len(self.denoiser.levels))  # a time of NaN has no level
        noise = torch.where(known[batch.batch][:, None], noise.to("cpu", torch.float64), math.nan)
        noise = torch.where(batch.fixed[:, None], 0, noise)
        noise = centre(noise, batch.batch, batch.natoms, batch.fixed)
        return noise, torch.where(known, level, len(self.denoiser.levels) - 1)

    def _unit_noise(self, batch: Structures, walkers: Sequence[Walker]) -> Tensor:
        noise = draw_unit_noise(batch.natoms.tolist(), [walker.generator for walker in walkers])
        noise = torch.where(batch.fixed[:, None], 0, noise)
        return centre(noise, batch.batch, batch.natoms, batch.fixed)

    def _outcome(self, walker: Walker, reason: Reason) -> Relaxed:
        structure, sigmas = walker.structure, self.denoiser.levels.sigmas
        return Relaxed(
            pos=walker.estimate,
            reason=reason,
            levels=tuple(walker.levels),
            sigmas=tuple(sigmas[t] for t in walker.levels),
            moved=structure.distance_to(walker.estimate),
            history=tuple(walker.history),
        )


def relax_structures(
    structures: Sequence[Structure],
    denoiser: Denoiser,
    settings: RelaxSettings | None = None,
    seed: int = 0,
    *,
    numbers: Sequence[int] | None = None,
    keep_history: bool = False,
) -> list[Relaxed]:
    """Relax structures by denoising, in batches; see :class:`RelaxLoop` for arguments and errors.

    Returns:
        One result for each structure, in their order.

    Raises:
        ValueError: a number is given twice, or there are more or fewer numbers than structures.
    """
    numbers = range(len(structures)) if numbers is None else numbers
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"numbers must differ from each other, got {list(numbers)}")
    found = dict(
        RelaxLoop(
            structures,
            denoiser,
            settings or RelaxSettings(),
            seed,
            numbers=numbers,
            keep_history=keep_history,
        )
    )
    return [found[number] for number in numbers]

"""Relaxer of ASE's structures by denoising: an optimizer for one structure, batches for many.

Why `AtomsRelaxation` has the surface of ASE's optimizers but is no subclass: their base classes ask
for forces at every step, and changed ``converged`` and the gradient's sign between ASE 3.22 and
3.29. What workflows use is kept: ``run``, ``irun``, ``attach``, ``converged`` and ``nsteps``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.io.trajectory import Trajectory
from torch import Tensor

from dens.relax.atoms.conversion import Limits, move_atoms, moved_copy, to_structures
from dens.relax.config import RelaxSettings
from dens.relax.loop import Relaxed, RelaxLoop
from dens.relax.structures import Denoiser, Structure


class RelaxedAtoms(NamedTuple):
    """A relaxed copy of a structure, without calculator, and how it was relaxed."""

    atoms: Atoms
    relaxed: Relaxed


class Relaxer:
    """Relaxation of ASE's structures by denoising, without energies and forces.

    Called with one structure, it makes an optimizer that moves it; :meth:`relax_many` relaxes
    copies of many in batches. `FixAtoms` is honoured to the last bit, positions are never wrapped,
    cells never changed. Conformers stay what they are: noise is removed, torsions are not searched.

    Args:
        denoiser: the model.
        settings: sampler, when to stop, size of batches.
        seed: of the samplers' random numbers; equal calls give equal results.

    Raises:
        ConfigError: the settings do not fit the levels of the denoiser.
    """

    def __init__(
        self, denoiser: Denoiser, settings: RelaxSettings | None = None, seed: int = 0
    ) -> None:
        self.denoiser, self.settings, self.seed = denoiser, settings or RelaxSettings(), seed
        self.limits = Limits.of(denoiser)
        self.settings.lowest_level(denoiser.levels)

    def __call__(
        self,
        atoms: Atoms,
        trajectory: str | Path | Any | None = None,
        logfile: str | Path | IO | None = "-",
    ) -> AtomsRelaxation:
        """Make an optimizer for one structure, see :class:`AtomsRelaxation`.

        Raises:
            ValueError: one line that says why the structure cannot be relaxed.
        """
        name = f"the structure {atoms.get_chemical_formula()}"
        (structure,) = to_structures([atoms], self.limits, [name])
        loop = RelaxLoop([structure], self.denoiser, self.settings, self.seed)
        return AtomsRelaxation(atoms, structure, loop, trajectory=trajectory, logfile=logfile)

    def relax_many(
        self,
        atoms: Sequence[Atoms],
        *,
        names: Sequence[str] | None = None,
        keep_history: bool = False,
    ) -> list[RelaxedAtoms]:
        """Relax copies of structures in batches; nothing that is given changes.

        Args:
            atoms: the structures; their numbers decide the random numbers.
            names: of the structures, for messages; by default number and formula.
            keep_history: whether results hold the positions of every call.

        Returns:
            One result for each structure, in their order.

        Raises:
            ValueError: one line for each structure that cannot be relaxed, before any is.
        """
        found = dict(self.iter_many(atoms, names=names, keep_history=keep_history))
        return [found[number] for number in range(len(atoms))]

    def iter_many(
        self,
        atoms: Sequence[Atoms],
        *,
        names: Sequence[str] | None = None,
        keep_history: bool = False,
    ) -> Iterator[tuple[int, RelaxedAtoms]]:
        """Relax as :meth:`relax_many`; give each result with its number as soon as it is there."""
        structures = to_structures(atoms, self.limits, names)
        loop = RelaxLoop(
            structures, self.denoiser, self.settings, self.seed, keep_history=keep_history
        )
        return (
            (number, RelaxedAtoms(moved_copy(atoms[number], relaxed.pos), relaxed))
            for number, relaxed in loop
        )


class AtomsRelaxation:
    """Relaxation of one ASE structure, in place, with the surface of ASE's optimizers.

    A step is one call of the denoiser. Between steps the structure is on the sampler's way; after
    the last one it is at the estimate of the relaxed structure. A later ``run`` goes on from where
    the sampler was, and from the structure's own positions if they were changed in the meantime.

    Args:
        atoms: the structure to move.
        structure: the same, converted.
        loop: a loop that relaxes it alone.
        trajectory: file for the structure at the start and after each step, or an object to write
            it to.
        logfile: file that lines are added to, ``-`` for standard output, or an open file.
    """

    def __init__(
        self,
        atoms: Atoms,
        structure: Structure,
        loop: RelaxLoop,
        *,
        trajectory: str | Path | Any | None = None,
        logfile: str | Path | IO | None = None,
    ) -> None:
        self.atoms, self.nsteps = atoms, 0
        self.outcome: Relaxed | None = None  # how it ended, once it has
        self.fmax: float | None = None  # eV/Å
        self._structure, self._loop, self._logfile = structure, loop, logfile
        loop.refill()
        (self._walker,) = loop.active
        self._set_last = atoms.positions.copy()
        self._observers: list[tuple[Callable, int, tuple, dict]] = []
        if isinstance(trajectory, str | Path):
            Path(trajectory).unlink(missing_ok=True)
            self.attach(_append, 1, Path(trajectory), atoms)
        elif trajectory is not None:
            self.attach(trajectory.write, 1, atoms)

    @property
    def noise_level(self) -> float | None:
        """The noise level that the last step found, Å; None before the first."""
        levels = self._walker.levels
        return self._loop.denoiser.levels.sigmas[levels[-1]] if levels else None

    def attach(self, function: Callable | Any, interval: int = 1, *args: Any, **kwargs: Any):
        """Call a function, or the ``write`` of an object, at every ``interval`` steps.

        As in ASE, an interval <= 0 means once, after that many steps.
        """
        function = function if callable(function) else function.write
        self._observers.append((function, interval, args, kwargs))

    def run(self, fmax: float | None = None, steps: int | None = None) -> bool:
        """Relax the structure; tell whether it has converged.

        Args:
            fmax: eV/Å; where given, convergence also needs forces of the structure's own calculator
                that are smaller; they do not guide the relaxation.
            steps: limit of steps, besides that of the settings.

        Raises:
            ValueError: ``fmax`` without a calculator.
        """
        return list(self.irun(fmax, steps))[-1]

    def irun(self, fmax: float | None = None, steps: int | None = None) -> Iterator[bool]:
        """Relax as :meth:`run`; give at the start and after each step whether it has converged."""
        if fmax is not None and self.atoms.calc is None:
            raise ValueError(
                f"fmax = {fmax:g} needs forces, but the structure has no calculator: leave fmax "
                "out, the noise level decides, or set atoms.calc"
            )
        self.fmax = fmax
        return self._irun(None if steps is None else self.nsteps + steps)

    def converged(self, forces: np.ndarray | None = None) -> bool:
        """Tell whether the relaxation has converged, and forces are below ``fmax`` if it is set.

        Args:
            forces: (n_atoms, 3), eV/Å; by default those of the calculator.
        """
        if self.outcome is None or not self.outcome.converged:
            return False
        if self.fmax is None:
            return True
        forces = self.atoms.get_forces() if forces is None else forces
        return bool(np.linalg.norm(forces, axis=1).max() < self.fmax)

    def get_number_of_steps(self) -> int:
        """Return the number of steps, as ASE's optimizers do."""
        return self.nsteps

    def _irun(self, last: int | None) -> Iterator[bool]:
        if self.nsteps == 0:
            self._report()
        yield self.converged()
        while self.outcome is None and (last is None or self.nsteps < last):
            self._step(is_last=self.nsteps + 1 == last)
            self._report()
            yield self.converged()

    def _step(self, is_last: bool) -> None:
        if not np.array_equal(self.atoms.positions, self._set_last):  # moved by somebody else
            self._walker.pos = self._walker.pos.new_tensor(self.atoms.positions)
        finished = self._loop.step()
        self.nsteps += 1
        if finished:
            self.outcome = finished[0][1]
        self._move(self._walker.estimate if finished or is_last else self._walker.pos)

    def _move(self, pos: Tensor) -> None:
        move_atoms(self.atoms, pos)
        self._set_last = self.atoms.positions.copy()

    def _report(self) -> None:
        self._log()
        for function, interval, args, kwargs in self._observers:
            due = self.nsteps % interval == 0 if interval > 0 else self.nsteps == -interval
            if due:
                function(*args, **kwargs)

    def _log(self) -> None:
        if self._logfile is None:
            return
        sampler = self._loop.settings.sampler
        level = "-" if self.noise_level is None else f"{self.noise_level:.4f}"
        moved = self._structure.distance_to(self._walker.pos.new_tensor(self.atoms.positions))
        now = time.strftime("%H:%M:%S")
        lines = [f"{sampler}: {self.nsteps:5d} {now} {level:>15} {moved:13.4f}"]
        if self.nsteps == 0:
            lines.insert(0, f"{'Step':>{len(sampler) + 7}}     Time noise level (Å)     moved (Å)")
        if self.outcome is not None:
            lines.append(f"{sampler}: {self.outcome.why}")
        text = "".join(f"{line}\n" for line in lines)
        if hasattr(self._logfile, "write"):
            self._logfile.write(text)
        elif str(self._logfile) == "-":
            sys.stdout.write(text)
        else:
            with open(self._logfile, "a", encoding="utf-8") as file:
                file.write(text)


def _append(path: Path, atoms: Atoms) -> None:
    """Add a structure to a trajectory, which is whole after each step."""
    with Trajectory(path, "a") as trajectory:
        trajectory.write(atoms)

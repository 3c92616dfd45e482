"""Relax the structures of ``dataset.relax`` with the model of a MoreRed trainer.

It is what ``fairchem main.py --mode run-relaxations`` does, with denoising in place of LBFGS. The
ranks share the data as fairchem's loader does; a structure's result does not depend on its rank.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from dens.data.store.records import data_to_atoms
from dens.fairchem1.config.methods.morered import RelaxOptions, parse_relaxation, predicted_by
from dens.fairchem1.morered.denoisers import MoreRedDenoiser, Network
from dens.fairchem1.train.relaxation import check_trajectory_names, frame_name
from dens.fields import SAMPLE_ID
from dens.files import atomic_file
from dens.ranks import gather_objects, is_master, sum_over_ranks
from dens.relax.atoms.conversion import (
    Limits,
    convert_each,
    moved_copy,
    read_outcome,
    relaxed_copy,
)
from dens.relax.loop import Relaxed, RelaxLoop
from dens.relax.quality import distances, share_within
from dens.relax.structures import Structure
from dens.runs.terminal.heading import count_of
from dens.runs.terminal.output import show
from dens.runs.terminal.progress import follow
from dens.settings import ConfigError

_MAX_ERRORS = 20


@dataclass
class _Job:
    """A structure of the data, and its result."""

    number: int  # of its record, which decides the random numbers
    name: str
    atoms: Atoms
    target: Tensor | None  # (n_atoms, 3) | Å, pos_relaxed
    structure: Structure | None = None
    pos: Tensor | None = None  # (n_atoms, 3) | Å, relaxed
    converged: bool = False
    calls: int = 0


@dataclass(frozen=True)
class _Result:
    """Result of a relaxed structure, as it is sent to the master."""

    number: int
    name: str
    pos: np.ndarray  # (n_atoms, 3) | Å, not wrapped
    converged: bool
    calls: int
    errors: tuple[tuple[float, float], ...]  # Å | rmsd and mean distance to pos_relaxed: start, end


def relax_dataset(trainer: Any) -> None:
    """Relax the structures of a trainer's ``relax_loader``, and write ``relaxed_positions.npz``.

    The file has fairchem's arrays (``ids``: sid, or sid-fid where the fid is not 0; ``pos`` and
    ``chunk_idx``), and ``converged`` and ``calls`` of each structure. Where the data have
    ``pos_relaxed``, distances to it are logged, of starts and results.

    Args:
        trainer: of MoreRed, with its model and data loaded. Every rank must call it.

    Raises:
        ConfigError: the model does not predict both noise and level; before any structure is
            relaxed, one line for each that cannot be, and for trajectories with one name.
    """
    task = trainer.config["task"]
    settings = parse_relaxation(task)
    seed = trainer.config["cmd"]["seed"] or 0
    denoiser = _denoiser(trainer, seed)
    folder = None if settings.traj_dir is None else Path(settings.traj_dir)
    jobs = list(_read_jobs(trainer.relax_loader, task.get("num_relaxation_batches")))
    errors = _convert(jobs, denoiser) + _read_trajectories(jobs, folder)
    _refuse(errors, jobs, folder, trainer.device)
    done = sum(job.pos is not None for job in jobs)
    with trainer.evaluating():
        _relax(
            [job for job in jobs if job.pos is None],
            denoiser,
            settings,
            seed,
            folder=folder,
            whole=task.get("save_full_traj", True),
        )
    gathered = gather_objects(([_result(job) for job in jobs], done))
    if is_master():
        results = {result.number: result for part, _ in gathered for result in part}
        if n_read := sum(n for _, n in gathered):
            show(f"{n_read} structures were relaxed before, and are read from {folder}")
        _report(trainer, [results[number] for number in sorted(results)])


def _denoiser(trainer: Any, seed: int) -> MoreRedDenoiser:
    predicted = predicted_by(trainer.config["model"])
    if missing := {"noise", "time"} - set(predicted):
        raise ConfigError(
            f"--mode run-relaxations needs a model that predicts noise and time, this one lacks "
            f"{' and '.join(sorted(missing))}: dens relax takes a pair of networks (model.heads)"
        )
    record = trainer.element_record
    trained = None if record is None else record.elements()
    network = Network(trainer._unwrapped_model, seed, trained or None)  # none: before training
    return MoreRedDenoiser(network, trainer.objective.config.levels)


def _read_jobs(loader: Any, limit: int | None) -> Iterator[_Job]:
    """Read the structures of this rank, those of ``limit`` batches at most."""
    for i, batch in enumerate(loader):
        if limit is not None and i >= limit:
            return
        for data in batch.to_data_list():
            target = data.pos_relaxed.double() if "pos_relaxed" in data else None
            yield _Job(
                number=int(data[SAMPLE_ID.name]),
                name=frame_name(data.sid, int(data.fid) if "fid" in data else 0),
                atoms=data_to_atoms(data),
                target=target if target is not None and target.isfinite().all() else None,
            )


def _convert(jobs: Sequence[_Job], denoiser: MoreRedDenoiser) -> list[str]:
    """Convert structures; return a line for each that cannot be relaxed."""
    errors = []
    found = convert_each([job.atoms for job in jobs], Limits.of(denoiser))
    for job, structure in zip(jobs, found, strict=True):
        if isinstance(structure, str):
            errors.append(f"structure {job.name} of dataset.relax: {structure}")
        else:
            job.structure = structure
    return errors


def _read_trajectories(jobs: Sequence[_Job], folder: Path | None) -> list[str]:
    """Take the results of structures whose trajectories are there; return a line for each error."""
    errors = []
    for job in jobs if folder is not None else ():
        path = _trajectory(folder, job)
        if not path.exists():
            continue
        last = ase.io.read(path)
        if not np.array_equal(last.numbers, job.atoms.numbers):
            errors.append(f"{path} is of another structure (task.relax_opt.traj_dir)")
        job.pos = torch.from_numpy(last.positions)
        job.converged, job.calls = read_outcome(last)
    return errors


def _refuse(
    errors: Sequence[str], jobs: Sequence[_Job], folder: Path | None, device: torch.device
) -> None:
    """Refuse structures of any rank on all ranks, and names of trajectories that are equal."""
    gathered = gather_objects((errors, {job.number: job.name for job in jobs}))
    lines = list(dict.fromkeys(line for own, _ in gathered for line in own))
    names = [*{number: name for _, own in gathered for number, name in own.items()}.values()]
    if folder is not None:
        try:
            check_trajectory_names(names)
        except ConfigError as error:
            lines.append(str(error))
    elif repeated := [name for name, n in Counter(names).items() if n > 1]:
        logging.warning(
            f"{len(repeated)} ids stand for several structures, such as {repeated[0]}: "
            "relaxed_positions.npz holds them all, in the order of the data"
        )
    if sum_over_ranks(torch.tensor(len(lines), device=device)):
        if (more := len(lines) - _MAX_ERRORS) > 0:
            lines[_MAX_ERRORS:] = [f"and {more} structures more that cannot be relaxed"]
        raise ConfigError("\n".join(lines or ["a structure of dataset.relax cannot be relaxed"]))


def _trajectory(folder: Path, job: _Job) -> Path:
    return folder / f"{job.name}.traj"


def _relax(
    jobs: Sequence[_Job],
    denoiser: MoreRedDenoiser,
    settings: RelaxOptions,
    seed: int,
    *,
    folder: Path | None,
    whole: bool,
) -> None:
    """Relax structures, set their results, and write their trajectories."""
    loop = RelaxLoop(
        [job.structure for job in jobs],
        denoiser,
        settings,
        seed,
        numbers=[job.number for job in jobs],
        keep_history=folder is not None and whole,
    )
    by_number = {job.number: job for job in jobs}
    for number, relaxed in follow(
        loop, total=len(jobs), desc="relaxation", disable=not is_master()
    ):
        job = by_number[number]
        job.pos, job.converged, job.calls = relaxed.pos, relaxed.converged, relaxed.calls
        if folder is not None:
            _write_trajectory(_trajectory(folder, job), job, relaxed)


def _write_trajectory(path: Path, job: _Job, relaxed: Relaxed) -> None:
    """Write the positions of each call and the result, or start and result alone."""
    way = relaxed.history or [torch.from_numpy(job.atoms.positions)]
    frames = [*(moved_copy(job.atoms, pos) for pos in way), relaxed_copy(job.atoms, relaxed)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        ase.io.write(file, frames, format="traj")


def _result(job: _Job) -> _Result:
    errors = ()
    if job.target is not None:
        errors = tuple(_errors(job, pos) for pos in (job.structure.pos, job.pos))
    return _Result(job.number, job.name, job.pos.numpy(), job.converged, job.calls, errors)


def _errors(job: _Job, pos: Tensor) -> tuple[float, float]:
    """Return rmsd and mean distance of positions from ``pos_relaxed``, over free atoms, Å."""
    structure, n_atoms = job.structure, torch.tensor([len(pos)])
    cell = None if structure.cell is None else structure.cell[None]
    batch = torch.zeros(len(pos), dtype=torch.long)
    found = distances(pos, job.target, batch, n_atoms, fixed=structure.fixed, cell=cell)
    return found.rmsd.item(), found.mean.item()


def _report(trainer: Any, results: Sequence[_Result]) -> None:
    """Write the positions and log the table, on the master."""
    if trainer.config["task"].get("write_pos", True) and results:
        path = Path(trainer.config["cmd"]["results_dir"], "relaxed_positions.npz")
        _write_positions(path, results)
    n, calls = len(results), [result.calls for result in results]
    n_converged = sum(result.converged for result in results)
    show(
        f"{count_of(n, 'structure')}, {n_converged} of them converged, "
        f"in {np.median(calls or [0]):g} calls (median; at most {max(calls, default=0)})"
    )
    errors = torch.tensor([result.errors for result in results if result.errors])
    if not len(errors):
        return
    rmsd, mean = errors.unbind(2)
    metrics = {
        "is2rs_average_distance_within_threshold": [share_within(v) for v in mean.unbind(1)],
        "is2rs_mean_distance": mean.median(0).values.tolist(),
        "is2rs_rmsd": rmsd.median(0).values.tolist(),
    }
    rows = [f"{'':42} start  result   ({len(errors)} structures with pos_relaxed)"]
    names = ("average_distance_within_threshold", "mean distance, median (Å)", "RMSD, median (Å)")
    for name, (start, end) in zip(names, metrics.values(), strict=True):
        rows.append(f"{name:40} {start:7.3f} {end:7.3f}")
    show("\n".join(rows))
    trainer.log({name: end for name, (_, end) in metrics.items()}, split="val")


def _write_positions(path: Path, results: Sequence[_Result]) -> None:
    """Write the arrays of fairchem's file, converged and calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = [len(result.pos) for result in results]
    with atomic_file(path) as file:
        np.savez_compressed(
            file,
            ids=np.array([result.name for result in results]),
            pos=np.concatenate([result.pos for result in results]),
            chunk_idx=np.cumsum(sizes)[:-1],  # for np.split
            converged=np.array([result.converged for result in results]),
            calls=np.array([result.calls for result in results]),
        )
    show(f"Positions are in {path}")

"""``dens relax``: relax the structures of files by denoising, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import click
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from ase.optimize import BFGS, FIRE, LBFGS

from dens.fairchem1.checkpoints.calculator import load_calculator
from dens.fairchem1.morered.denoisers import ZeroForceDenoiser
from dens.fairchem1.morered.load import load_relaxer
from dens.relax.atoms.conversion import convert_each, moved_copy, relaxed_copy
from dens.relax.atoms.relaxer import Relaxer
from dens.relax.config import RelaxSettings
from dens.relax.loop import Relaxed, RelaxLoop
from dens.runs.terminal.heading import count_of
from dens.settings import ConfigError

_PATH = click.Path(path_type=Path)
_POLISH = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}
_POLISH_STEPS = 200


@dataclass
class Job:
    """A structure to relax, and what became of it."""

    name: str  # file, and the number of the frame where it has several
    atoms: Atoms
    relaxed: Relaxed | None = None
    error: str | None = None  # why it could not be relaxed
    steps: int | None = None  # of the polish
    polished: bool | None = None  # whether the forces fell below the limit

    @property
    def converged(self) -> bool:
        """Whether denoising, and the polish if there was one, have converged."""
        return self.relaxed is not None and self.relaxed.converged and self.polished is not False


def _option(name: str, field: str, **settings: Any):
    """Make an option for a field of RelaxSettings, with its description as help."""
    about = RelaxSettings.model_fields[field]
    return click.option(
        name, field, help=about.description[:1].upper() + about.description[1:] + ".", **settings
    )


@click.command("relax")
@click.argument("files", nargs=-1, required=True, type=_PATH)
@click.option("--checkpoint", required=True, type=_PATH, help="Model of MoreRed, or of DeNS.")
@click.option("--out", required=True, type=_PATH, help="File to write, of any format of ASE.")
@click.option("--time-checkpoint", type=_PATH, help="Time network of the samplers as and itp.")
@_option("--sampler", "sampler", type=click.Choice(["direct", "jt", "as", "itp"]))
@_option("--max-calls", "max_calls", type=click.IntRange(min=1))
@_option("--stop-level", "stop_level", type=click.IntRange(min=0))
@_option("--start-level", "start_level", type=float, metavar="Å")
@_option("--batch-atoms", "batch_atoms", type=click.IntRange(min=1))
@click.option(
    "--polish",
    type=click.Choice([*_POLISH]),
    help="Go on with this optimizer of ASE, on the forces of a DeNS model.",
)
@click.option(
    "--fmax",
    type=click.FloatRange(min=0, min_open=True),
    help="Of --polish, eV/Å.  [default: 0.05]",
)
@click.option("--trajectories", type=_PATH, help="Folder for the way of each structure.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--raw", is_flag=True, help="Take the weights as trained, not their average (EMA).")
@click.option("--cpu", is_flag=True, help="Run on the CPU even if there is a GPU.")
@click.pass_context
def relax_command(
    ctx: click.Context,
    files: Sequence[Path],
    checkpoint: Path,
    out: Path,
    time_checkpoint: Path | None,
    polish: str | None,
    fmax: float | None,
    trajectories: Path | None,
    seed: int,
    raw: bool,
    cpu: bool,
    **settings: Any,
) -> None:
    """Relax FILES by denoising.

    Neither energies nor forces are needed. FILES are of any format that ASE reads. A row is printed
    for each structure, and the relaxed structures are written in the same order. A structure that
    cannot be relaxed is left out, with a line that says why. The exit status is 1 where one was
    left out or has not converged.
    """
    if fmax is not None and polish is None:
        raise ConfigError(f"--fmax {fmax:g} is for --polish, which is missing")
    jobs, complaints = read_jobs(files)
    _check_out(out, files, len(jobs))
    given = {name: value for name, value in settings.items() if value is not None}
    relaxer = load_relaxer(
        checkpoint, time_path=time_checkpoint, seed=seed, raw=raw, cpu=cpu, **given
    )
    calculator = None
    if polish is not None:
        if not isinstance(relaxer.denoiser, ZeroForceDenoiser):
            raise ConfigError(f"--polish needs forces, which {checkpoint} does not predict")
        calculator = load_calculator(checkpoint, raw=raw, cpu=cpu, seed=seed)
    relax_jobs(relaxer, jobs, trajectories)
    done = [job for job in jobs if job.relaxed is not None]
    for job in done:
        if calculator is not None:
            _polish(job, _POLISH[polish], calculator, fmax or 0.05)
    complaints += [f"{job.name}: {job.error}" for job in jobs if job.error]
    if done:
        click.echo(format_table(done))
        _write(out, done)
    for line in complaints:
        click.echo(f"error: {line}", err=True)
    n_converged = sum(job.converged for job in done)
    click.echo(
        f"{out}: {count_of(len(done), 'structure')}, {n_converged} of them converged"
        if done
        else f"{out} is not written: no structure was relaxed"
    )
    if complaints or n_converged < len(done):
        ctx.exit(1)


def read_jobs(files: Sequence[Path]) -> tuple[list[Job], list[str]]:
    """Read the structures of files; return them, and a line for each file that cannot be read."""
    jobs, complaints = [], []
    for path in files:
        try:
            frames = ase.io.read(path, index=":") if path.exists() else None
        except Exception as error:  # ASE's readers raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            complaints.append(f"{path} cannot be read: {reason}")
            continue
        if not frames:
            what = "does not exist" if frames is None else "holds no structure"
            complaints.append(f"{path} {what}")
            continue
        several = len(frames) > 1
        jobs += [Job(f"{path}" + f"@{i}" * several, atoms) for i, atoms in enumerate(frames)]
    return jobs, complaints


def relax_jobs(relaxer: Relaxer, jobs: Sequence[Job], trajectories: Path | None = None) -> None:
    """Relax structures in batches and set what became of each; write their ways to a folder."""
    found = convert_each([job.atoms for job in jobs], relaxer.limits)
    structures = {}
    for i, structure in enumerate(found):
        if isinstance(structure, str):
            jobs[i].error = structure
        else:
            structures[i] = structure
    loop = RelaxLoop(
        structures.values(),
        relaxer.denoiser,
        relaxer.settings,
        relaxer.seed,
        numbers=structures,
        keep_history=trajectories is not None,
    )
    for i, relaxed in loop:
        jobs[i].relaxed = relaxed
        start, jobs[i].atoms = jobs[i].atoms, relaxed_copy(jobs[i].atoms, relaxed)
        if trajectories is not None:
            steps = [moved_copy(start, pos) for pos in (*relaxed.history, relaxed.pos)]
            trajectories.mkdir(parents=True, exist_ok=True)
            ase.io.write(trajectories / f"{i:05d}_{_stem(jobs[i].name)}.traj", steps)


def _stem(name: str) -> str:
    return Path(name).name.replace("@", "_").replace(".", "_")


def _polish(job: Job, optimizer: type, calculator: Any, fmax: float) -> None:
    job.atoms.calc = calculator
    try:
        with optimizer(job.atoms, logfile=None) as run:
            job.polished = bool(run.run(fmax=fmax, steps=_POLISH_STEPS))
            job.steps = run.nsteps
    except ValueError as error:  # the structure has left what the model can take
        job.error, job.polished = f"--polish failed: {error}", False
    job.atoms.calc = None


def format_table(jobs: Sequence[Job]) -> str:
    """Format a row for each structure: its noise levels, calls, distance moved, why it stopped."""
    width = max(len(job.name) for job in jobs)
    polish = any(job.steps is not None for job in jobs)
    head = f"{'structure':<{width}} atoms   start     end  calls   moved" + "  polish" * polish
    rows = [head + "  stopped because", " " * width + "           (Å)     (Å)            (Å)"]
    for job in jobs:
        relaxed = job.relaxed
        row = (
            f"{job.name:<{width}} {len(job.atoms):5d} {relaxed.sigmas[0]:7.3f} "
            f"{relaxed.sigmas[-1]:7.3f} {relaxed.calls:6d} {relaxed.moved:7.3f}"
        )
        if polish:
            row += f"  {'-' if job.steps is None else job.steps:>6}"
        why = relaxed.why + "; the forces are still too large" * (job.polished is False)
        rows.append(f"{row}  {why}")
    return "\n".join(rows)


def _check_out(out: Path, files: Sequence[Path], n_structures: int) -> None:
    """Refuse a file to write of an unknown format, or one that is read."""
    if out.exists() and any(path.exists() and out.samefile(path) for path in files):
        raise ConfigError(f"--out must be another file than those that are read, got {out}")
    if out.is_dir():
        raise ConfigError(f"--out must be a file, got the folder {out}")
    try:
        found = ioformats.get(filetype(str(out), read=False))
    except UnknownFileTypeError:
        found = None
    if found is None or not found.can_write:
        raise ConfigError(f"--out {out} is of no format that ASE writes")
    if found.single and n_structures > 1:
        raise ConfigError(
            f"--out {out} takes one structure, got {n_structures}: such as .xyz, .traj"
        )


def _write(out: Path, jobs: Sequence[Job]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        ase.io.write(out, [job.atoms for job in jobs])
    except Exception as error:  # ASE's writers raise anything, such as for several structures
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"--out {out} cannot be written: {reason}") from error

"""Train and measure the missing runs of a study, and report: ``python -m experiments.run STUDY``.

A run trains in ``runs/STUDY/RUN``, in a process of its own on one thread. Stopped at any moment, it
goes on from its last checkpoint when the same command is given again. What is kept of a finished
run is ``experiments/results/STUDY/RUN.json``.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path

import click
import yaml

from experiments.study import ROOT, Run, Study, expand, load_study

DATA_VARIABLE = "DENS_DATA"
LAUNCHER = "from dens.cli import main; main()"
# By host: how a run trains, with its file of the config, and where its log lies
MODULES = {1: "experiments.one", 2: "experiments.one2"}
CONFIGS = {1: "config.yml", 2: "config.yaml"}
LOGS = {1: "logs/tensorboard/{name}/metrics.jsonl", 2: "{name}/logs/metrics.jsonl"}


class Runner:
    """Runner that makes the results of a study's runs.

    Args:
        folder: where they train.
        results: where their results are kept.
    """

    def __init__(self, folder: Path, results: Path) -> None:
        self.folder, self.results = folder.resolve(), results
        self.stopped = threading.Event()
        self._processes: list[subprocess.Popen] = []
        self._lock = threading.RLock()

    def result(self, run: Run) -> dict | None:
        """Return the result of a run, or None if it is not finished.

        Raises:
            ClickException: it was made with other settings.
        """
        path = self.results / f"{run.name}.json"
        if not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other(path, result["fingerprint"], run)
        return result

    def kept(self, runs: list[Run]) -> dict[str, dict]:
        """Return the results of the finished runs, by name; raises as :meth:`result` does."""
        found = {run.name: self.result(run) for run in runs}
        return {name: result for name, result in found.items() if result}

    def finish(self, run: Run) -> None:
        """Train (or resume), measure, and keep the result.

        What another study has trained under the same settings is taken from there.

        Raises:
            ClickException: the process failed; what is there is of other settings.
        """
        if (result := self._same_elsewhere(run)) is not None:
            self._write(run, result)
            return
        folder = self.folder / run.name
        with self._lock:
            if self.stopped.is_set():
                return
            self._prepare(run, folder)
            process = self._start(run, folder)
        if process.wait() == 0:
            self._keep(run, folder)
        elif not self.stopped.is_set():
            log = folder / "log.txt"
            last = log.read_text().splitlines()[-1:]
            raise click.ClickException(f"{run.name} failed, see {log}: {' '.join(last)}")

    def _prepare(self, run: Run, folder: Path) -> None:
        mark = folder / "fingerprint"
        begun = any(folder.glob("**/checkpoints"))
        if begun and mark.exists():
            _refuse_other(folder, mark.read_text(), run)
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(run.fingerprint)
        (folder / CONFIGS[run.host]).write_text(yaml.safe_dump(run.config, sort_keys=False))
        task = {"name": run.name, "seed": run.seed, "tests": run.tests, "sigmas": run.sigmas}
        (folder / "run.json").write_text(json.dumps(task))
        click.echo(f"{run.name}: {'goes on' if begun else 'starts'}")

    def _start(self, run: Run, folder: Path) -> subprocess.Popen:
        with open(folder / "log.txt", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULES[run.host], str(folder)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """Ask running processes to save and exit; start no more."""
        self.stopped.set()
        with self._lock:
            for process in self._processes:
                process.terminate()

    def _keep(self, run: Run, folder: Path) -> None:
        times, log = (
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in (
                folder / "times.jsonl",
                folder / LOGS[run.host].format(name=run.name),
            )
        )
        result = {
            **_names(run),
            **json.loads((folder / "measured.json").read_text()),
            # of training with its evaluations; steps that a killed process took twice count twice
            **{key: round(sum(t[key] for t in times), 1) for key in ("cpu_s", "wall_s")},
            "starts": len(times),
            "host": describe_host(),
            "commit": ", ".join(dict.fromkeys(t["commit"] for t in times)),
            "config": str(run.source),
            "settings": run.settings,
            "fingerprint": run.fingerprint,
            "validation": [
                [line["step"], line["forces_mae"], line["energy_mae"]]
                for line in log
                if line["split"] == "val" and "forces_mae" in line
            ],
        }
        self._write(run, result)
        click.echo(f"{run.name}: done, {result['wall_s'] / 60:.1f} minutes")

    def _write(self, run: Run, result: dict) -> None:
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{run.name}.json"
        path.with_suffix(".tmp").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(path.with_suffix(".tmp"), path)

    def _same_elsewhere(self, run: Run) -> dict | None:
        for path in sorted(self.results.parent.glob("*/*.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["fingerprint"] == run.fingerprint:
                click.echo(f"{run.name}: the same as {path.stem} of {path.parent.name}")
                return {**result, **_names(run)}
        return None


def _names(run: Run) -> dict:
    return {key: getattr(run, key) for key in ("study", "variant", "arm", "seed")}


def _refuse_other(path: Path, fingerprint: str, run: Run) -> None:
    if fingerprint != run.fingerprint:
        raise click.ClickException(
            f"{path} was made with other settings than the study has now: to make it anew, remove "
            f"the results and the folder of {run.name}"
        )


def describe_host() -> dict:
    """Describe the hardware, without host names."""
    import torch

    from benchmarks.measure import hardware

    gpu = hardware("cuda") if torch.cuda.is_available() else None
    return {"cpu": hardware("cpu"), "cores": os.cpu_count(), "gpu": gpu, "torch": torch.__version__}


def prepare_data(study: Study, source: Path | None) -> None:
    """Make the missing data folders; if another process is at it, wait until it has done so.

    Raises:
        ClickException: a command failed, or needs ``--data``.
    """
    if all((ROOT / folder).exists() for folder in study.data):
        return
    (ROOT / "data").mkdir(exist_ok=True)
    with open(ROOT / "data" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder, command in study.data.items():
            if not (ROOT / folder).exists():
                _make_data(folder, command, source)


def _make_data(folder: str, command: str, source: Path | None) -> None:
    if "{source}" in command and source is None:
        raise click.ClickException(
            f"{folder} is missing and made from data of yours: give --data PATH, or set "
            f"{DATA_VARIABLE}, to the folder with them"
        )
    program, *words = (word.format(source=source) for word in shlex.split(command))
    start = ["-c", LAUNCHER] if program == "dens" else ["-m", program]
    click.echo(f"{folder}: made by {command}")
    done = subprocess.run([sys.executable, *start, *words], cwd=ROOT)
    if done.returncode:
        raise click.ClickException(f"{folder}: {command} ended with {done.returncode}")


def run_all(runner: Runner, runs: list[Run], jobs: int) -> None:
    """Finish runs, `jobs` side by side, until done or stopped by SIGINT or SIGTERM.

    Raises:
        ClickException: a run failed, and the others were stopped; or stopped by a signal.
    """
    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: runner.stop()) for number in caught}
    try:
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(runner.finish, run) for run in runs]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                runner.stop()
                raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if runner.stopped.is_set():
        raise click.ClickException("stopped: the same command goes on")


def _all_results(studies: Path, results: Path) -> dict[str, tuple[Study, list[dict]]]:
    """Load every study that has an overview, with its results."""
    found = {}
    for path in sorted(studies.glob("*.yml")):
        study = load_study(path)
        if study.overview:
            runner = Runner(ROOT / "runs" / path.stem, results / path.stem)
            found[path.stem] = study, [*runner.kept(expand(path.stem, study)).values()]
    return found


_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("name", metavar="STUDY")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Side by side.")
@click.option("--data", type=_PATH, envvar=DATA_VARIABLE, help="Where the original data lie.")
@click.option("--only", default="*", help="Train only runs whose names match, as 'frames200-*'.")
@click.option("--list", "show", is_flag=True, help="Show the runs and whether they are done.")
@click.option("--report", is_flag=True, help="Train nothing; write tables and figures.")
@click.option("--studies", default=ROOT / "experiments/studies", type=_PATH, hidden=True)
@click.option("--runs", "folder", default=ROOT / "runs", type=_PATH, help="Where to train.")
@click.option("--results", default=ROOT / "experiments/results", type=_PATH, hidden=True)
@click.option("--out", default=ROOT / "docs/results.md", type=_PATH, help="Of --report.")
def main(name, jobs, data, only, show, report, studies, folder, results, out) -> None:
    """Train the runs of STUDY that have no result yet, and keep their results."""
    study = load_study(studies / f"{name}.yml")
    runner = Runner(folder / name, results / name)
    runs = expand(name, study)
    found = runner.kept(runs)
    if show:
        for run in runs:
            click.echo(f"{'done' if run.name in found else 'to do':<6} {run.name}")
    elif report:
        from experiments.report.overview import write_overview
        from experiments.report.results import write_report

        write_overview(_all_results(studies, results), out)
        write_report(name, study, [*found.values()], out)
    else:
        prepare_data(study, data.resolve() if data else None)
        todo = [run for run in runs if run.name not in found and fnmatch(run.name, only)]
        run_all(runner, todo, jobs)


if __name__ == "__main__":
    main()

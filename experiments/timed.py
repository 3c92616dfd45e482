"""Train, time and measure a run, and keep a second process away from it; for every host."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import commit


def train_and_measure(
    folder: Path, train: Callable[[Path, str, int], None], measure: Callable[..., dict]
) -> None:
    """Train and measure the run in a folder, with a lock against a second process."""
    task = json.loads((folder / "run.json").read_text())
    with exclusive(folder):
        train(folder, task["name"], task["seed"])
        (folder / "measured.json").write_text(json.dumps(measure(folder, **task)))


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Append seconds and commit of what is done here to ``times.jsonl``, even if it is stopped."""
    at, wall, cpu = commit(), time.time(), time.process_time()
    try:
        yield
    finally:
        took = {"cpu_s": time.process_time() - cpu, "wall_s": time.time() - wall, "commit": at}
        with open(folder / "times.jsonl", "a") as file:
            file.write(json.dumps(took) + "\n")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a run's folder.

    Raises:
        SystemExit: another process has the lock.
    """
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another process is at work in {folder}")
        yield

"""Build a data set in pieces that survive an interruption.

A piece is one LMDB file of one split. Pieces are made in the hidden folder ``.NAME.pieces`` beside
the output, each all or nothing, under a name that is the hash of whatever decides its contents. A
run that is interrupted leaves its finished pieces there, and the next run takes those it needs too,
instead of making them again. Once all are there, they are moved into the output, which appears as a
whole.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dens.data.store.lmdb import LmdbWriter
from dens.files import atomic_folder

Mapped = Callable[[Callable, Iterable], Iterator]

_AHEAD = 2  # tasks per worker that are handed out before the first of them is written


@dataclass
class Prepared:
    """What a task gives: pickled records, what `LmdbWriter.write_bytes` takes beside each of them,
    and counts to report."""

    payloads: list[bytes] = field(default_factory=list)
    metadata: list[dict[str, int]] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class Piece:
    """One LMDB file: the split it belongs to ("" is the output folder itself), and its tasks, whose
    repr tells all that decides their contents."""

    split: str
    tasks: tuple


def build(
    out: str | Path,
    pieces: Sequence[Piece],
    prepare: Callable[[Any], Prepared],
    *,
    settings: str,
    mapped: Mapped = map,
    finish: Callable[[Path, dict[str, Counter]], None],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Counter]:
    """Make the folder `out` with all pieces, in their order.

    Args:
        out: the folder to make; it must not exist.
        pieces: every split has at least one.
        prepare: makes the records of a task; picklable, for worker processes.
        settings: whatever else decides the records: a piece that was made with other settings is
            made again.
        mapped: ``map``, or what `mapper` gives. The bytes written do not depend on it.
        finish: called with the folder and the counts by split before the folder gets its name, to
            add files.
        progress: called after every task with the number of frames that are done.

    Returns:
        The sum of the tasks' counts by split, and ``records``.

    Raises:
        ValueError: `out` exists or cannot be made; a split without records; whatever `prepare`
            raises.
    """
    out = Path(os.path.abspath(out))
    store = out.with_name(f".{out.name}.pieces")
    with atomic_folder(out) as folder:
        folders = [store / _key(piece, settings) for piece in pieces]
        _prune(store, folders)
        done = 0
        try:
            for piece, path in zip(pieces, folders, strict=True):
                if not (path / "counts.json").exists():
                    _make(path, mapped(prepare, piece.tasks), lambda n, d=done: progress(d + n))
                done += _counts(path)["frames"]
                progress(done)
            totals = _collect(folder, pieces, folders)
            finish(folder, totals)
        finally:
            if store.exists() and not any(store.iterdir()):
                store.rmdir()
    shutil.rmtree(store, ignore_errors=True)
    return totals


def _key(piece: Piece, settings: str) -> str:
    return hashlib.sha256(f"{settings}\n{piece!r}".encode()).hexdigest()[:32]


def _prune(store: Path, wanted: list[Path]) -> None:
    """Remove what other settings, other data or an interrupted write left."""
    store.mkdir(exist_ok=True)
    for path in set(store.iterdir()) - set(wanted):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make(path: Path, results: Iterable[Prepared], progress: Callable[[int], None]) -> None:
    counts: Counter = Counter()
    with atomic_folder(path) as folder:
        with ExitStack() as stack:
            writer = None
            for result in results:
                counts.update(result.counts)
                counts["records"] += len(result.payloads)
                for payload, metadata in zip(result.payloads, result.metadata, strict=True):
                    if writer is None:
                        writer = stack.enter_context(LmdbWriter(folder / "lmdb"))
                    writer.write_bytes(payload, **metadata)
                progress(counts["frames"])
        (folder / "counts.json").write_text(json.dumps(counts))


def _counts(path: Path) -> Counter:
    return Counter(json.loads((path / "counts.json").read_text()))


def _collect(folder: Path, pieces: Sequence[Piece], paths: list[Path]) -> dict[str, Counter]:
    """Move the LMDB files of all pieces into the folder, and join their metadata."""
    totals: dict[str, Counter] = {}
    columns: dict[str, list[dict[str, np.ndarray]]] = {}
    shards: Counter = Counter()
    moves = []
    for piece, path in zip(pieces, paths, strict=True):
        totals.setdefault(piece.split, Counter()).update(_counts(path))
        if not (path / "lmdb").exists():
            continue  # all its frames were dropped
        with np.load(path / "lmdb" / "metadata.npz") as metadata:
            columns.setdefault(piece.split, []).append(dict(metadata))
        for shard in sorted((path / "lmdb").glob("*.lmdb")):
            moves.append((shard, folder / piece.split / f"data.{shards[piece.split]:04d}.lmdb"))
            shards[piece.split] += 1
    for split, counts in totals.items():
        if not counts["records"]:
            name = f"split {split}" if split else "the output"
            raise ValueError(f"{name} is empty: all of its {counts['frames']} frames were dropped")
        _save_metadata(folder / split, columns[split])
    for path in paths:  # from here on they are not complete
        (path / "counts.json").unlink()
    for shard, target in moves:
        shard.rename(target)
    return totals


def _save_metadata(folder: Path, parts: list[dict[str, np.ndarray]]) -> None:
    folder.mkdir(exist_ok=True)
    names = parts[0].keys()
    np.savez(folder / "metadata.npz", **{n: np.concatenate([p[n] for p in parts]) for n in names})


@contextmanager
def mapper(workers: int) -> Iterator[Mapped]:
    """A ``map`` whose calls are made by that many processes; by this one, for 1. The order of the
    results is that of the tasks.

    Raises:
        ValueError: a worker process died.
    """
    if workers == 1:
        yield map
        return
    # spawned, since a fork after torch has started threads may hang
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        yield lambda function, tasks: _ordered(pool, function, tasks, _AHEAD * workers)
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, perhaps for lack of memory: "
            "the same command with fewer --workers goes on from there"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ordered(
    pool: ProcessPoolExecutor, function: Callable, tasks: Iterable, ahead: int
) -> Iterator:
    """The results in the order of the tasks, few at a time: they are large."""
    pending: deque = deque()
    for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) == ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # a parent that is killed cannot tell its workers to end
    multiprocessing.parent_process().join()
    os._exit(1)

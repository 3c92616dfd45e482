"""Build a data set that can be resumed after an interruption.

A data set consists of shards: LMDB files of one split. They are built in the hidden folder
``.NAME.pieces`` beside the output, each all or nothing, under a name that hashes everything that
decides its contents. After an interruption the finished shards stay there, and the next run reuses
those that it needs. Once all are there, they are moved into the output, which appears as a whole.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
import torch_geometric
from torch_geometric.data import Data

import dens
from dens.data.convert.labels import LabelRules
from dens.data.references import References
from dens.data.skipped import BadFrame, Skipped, count_bad, merge_skipped
from dens.data.store.lmdb import LmdbWriter, join_folders
from dens.files import atomic_folder

Map = Callable[[Callable, Iterable], Iterator]
# yields the structures of a task with the metadata of each, or what is left out because it is bad;
# adds to counts for the report
Converter = Callable[[Any, Counter], Iterable[tuple[Data, dict[str, int]] | BadFrame]]

_AHEAD = 2  # tasks per worker that are handed out before the first of them is written


@dataclass(frozen=True)
class Shard:
    """One file to write: its split ("" for the output folder itself), the number of frames to
    read, and its tasks, whose repr shows everything that decides their contents."""

    split: str
    frames: int
    tasks: tuple


def build(
    out: str | Path,
    shards: Sequence[Shard],
    convert: Converter,
    rules: LabelRules,
    command: str,
    describe: Callable[[dict[str, Counter]], dict],
    *,
    setting: Any = None,
    store: type[LmdbWriter] = LmdbWriter,
    run_map: Map = map,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Counter]:
    """Make the folder `out` with all shards, in their order, and ``dens_info.json``.

    Args:
        out: the folder to make; it must not exist.
        shards: at least one for every split.
        convert: converts a task; it must be picklable, for worker processes, and count ``frames``.
        rules: rules that `convert` applies.
        command: name of the command, for ``dens_info.json``.
        describe: gives further entries of ``dens_info.json`` from the counts by split; its entry
            ``skipped`` holds the bad frames that were left out, by reason.
        setting: any other value that decides the records: a shard that was made with other rules or
            another setting is made again.
        store: the writer, of the format of the records.
        run_map: ``map``, or a parallel map from `parallel_map`. The bytes do not depend on it.
        progress: called after every task with the frames done and in all.

    Returns:
        By split, the sums of the converter's counts, and the number of ``records``.

    Raises:
        ValueError: `out` exists or cannot be made; a split without records; structures with and
            without periodic boundaries; an error of `convert`.
    """
    out = Path(os.path.abspath(out))
    cache = out.with_name(f".{out.name}.pieces")
    total, done = sum(shard.frames for shard in shards), 0
    with atomic_folder(out) as folder:
        settings = json.dumps([versions(), rules.describe(), setting, store.name])
        paths = [cache / _key(shard, settings) for shard in shards]
        _prune(cache, paths)
        try:
            for shard, path in zip(shards, paths, strict=True):
                if not (path / "counts.json").exists():
                    results = run_map(partial(_encode, convert, store), shard.tasks)
                    _write(path, results, store, lambda n, d=done: progress(d + n, total))
                done += _read_counts(path)[0]["frames"]
                progress(done, total)
            counts, skipped = _collect(folder, shards, paths, store)
            check_boundaries(counts)
            bad = list(skipped.values())
            info = {"format": store.name, **rules.describe(), **describe(counts)}
            info |= {"skipped": bad} if bad else {}
            write_info(folder, command, info, rules.references)
        finally:
            if cache.exists() and not any(cache.iterdir()):
                cache.rmdir()
    shutil.rmtree(cache, ignore_errors=True)
    return counts


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide the bytes written."""
    modules = {"ase": ase, "dens": dens, "numpy": np, "torch": torch, "pyg": torch_geometric}
    return {name: module.__version__ for name, module in modules.items()}


def write_info(folder: Path, command: str, info: dict, references: References | None) -> None:
    """Write ``dens_info.json``, which describes the data, and ``references.npz`` if there are any
    references."""
    stored = "as in the source"
    if references:
        stored = "minus the reference of each element (eV per atom)"
        np.savez(folder / "references.npz", coeff=references.coeff)
    known = {"command": command, "stored_units": "eV, Å, eV/Å", "energy": stored}
    text = json.dumps({**known, **info, "versions": versions()}, indent=1, ensure_ascii=False)
    info_file(folder).write_text(text + "\n", encoding="utf-8")


def info_file(folder: Path) -> Path:
    """Return the path of ``dens_info.json``, which is YAML, too, and called so beside aselmdb:
    fairchem-core 2 takes every .json in a folder of data for a database."""
    return folder / ("dens_info.yaml" if any(folder.glob("*.aselmdb")) else "dens_info.json")


def check_boundaries(totals: Mapping[str, Counter]) -> None:
    """Refuse structures with and without periodic boundaries in one data set: a batch holds either.

    Which of them should change is not ours to guess: a box around a molecule may be meant, or a
    forgotten cell.

    Raises:
        ValueError: they are mixed.
    """
    total = sum(totals.values(), Counter())
    if total["open"] and total["periodic"]:
        raise ValueError(
            f"expected structures with periodic boundaries or without, got {total['periodic']} "
            f"with and {total['open']} without: convert them to folders of their own, or give "
            "--pbc TTT, which puts the open ones into boxes with vacuum around them"
        )


def _key(shard: Shard, settings: str) -> str:
    return hashlib.sha256(f"{settings}\n{shard!r}".encode()).hexdigest()[:32]


def _prune(cache: Path, wanted: list[Path]) -> None:
    """Remove shards of other settings or other data, and unfinished ones."""
    cache.mkdir(exist_ok=True)
    for path in set(cache.iterdir()) - set(wanted):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _encode(
    convert: Converter, store: type[LmdbWriter], task: Any
) -> tuple[list[tuple[bytes, dict[str, int]]], Counter, Skipped]:
    """Convert a task and encode its records, in a worker process."""
    counts: Counter = Counter()
    records, bad = [], []
    for result in convert(task, counts):
        if isinstance(result, BadFrame):
            bad.append(result)
        else:
            data, metadata = result
            sizes = {"natoms": len(data.pos), **metadata}
            records.append((store.encode(data), sizes))
    counts["records"] = len(records)
    counts["frames"] += sum(frame.frames for frame in bad)
    return records, counts, count_bad(bad)


def _write(
    path: Path, results: Iterable, store: type[LmdbWriter], progress: Callable[[int], None]
) -> None:
    counts: Counter = Counter()
    skipped: Skipped = {}
    with atomic_folder(path) as folder:
        with ExitStack() as stack:
            writer = None
            for records, more, bad in results:
                counts.update(more)
                merge_skipped(skipped, bad)
                if records and writer is None:
                    writer = stack.enter_context(store(folder / store.name))
                for payload, metadata in records:
                    writer.write_bytes(payload, **metadata)
                progress(counts["frames"])
        (folder / "counts.json").write_text(json.dumps([counts, skipped]))


def _read_counts(path: Path) -> tuple[Counter, Skipped]:
    counts, skipped = json.loads((path / "counts.json").read_text())
    return Counter(counts), skipped


def _collect(
    folder: Path, shards: Sequence[Shard], paths: list[Path], store: type[LmdbWriter]
) -> tuple[dict[str, Counter], Skipped]:
    """Move the finished shards into the output folder; return the counts by split, and the bad
    frames of all."""
    totals: dict[str, Counter] = {}
    bad: dict[str, Skipped] = {}
    parts: dict[str, list[Path]] = {}
    for shard, path in zip(shards, paths, strict=True):
        counts, skipped = _read_counts(path)
        totals.setdefault(shard.split, Counter()).update(counts)
        merge_skipped(bad.setdefault(shard.split, {}), skipped)
        if (path / store.name).exists():  # unless all its frames were dropped
            parts.setdefault(shard.split, []).append(path / store.name)
    for split, counts in totals.items():
        if not counts["records"]:
            name = f"split {split}" if split else "the output"
            first = next(iter(bad[split].values()), None)
            why = f", at {first['first'][0]} since {first['reason']}" if first else ""
            raise ValueError(
                f"{name} is empty: all of its {counts['frames']} frames were dropped{why}"
            )
    for path in paths:  # from here on they are incomplete
        (path / "counts.json").unlink()
    for split, folders in parts.items():
        join_folders(folders, folder / split)
    together: Skipped = {}
    for split, skipped in bad.items():
        merge_skipped(together, skipped)
        if skipped:
            totals[split]["bad"] = sum(entry["count"] for entry in skipped.values())
    return totals, together


@contextmanager
def parallel_map(workers: int) -> Iterator[Map]:
    """Yield a ``map`` that runs in worker processes; results keep the order of the tasks.

    Args:
        workers: number of processes; 1 for the current process.

    Raises:
        ValueError: a worker process died.
    """
    if workers == 1:
        yield map
        return
    # spawned, since a fork after torch has started threads may hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    try:
        yield partial(_map_in_order, pool, _AHEAD * workers)
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, perhaps for lack of memory: "
            "the same command with fewer --workers goes on from there"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _map_in_order(
    pool: ProcessPoolExecutor, ahead: int, function: Callable, tasks: Iterable
) -> Iterator:
    """Yield results in the order of the tasks; hold only `ahead` of them: they are large."""
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

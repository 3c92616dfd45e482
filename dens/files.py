"""Write folders and files atomically: complete under their names, or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder that exists under its name only once it is complete.

    Yields the hidden sibling ``.NAME.partial`` to write into. When the block ends without an
    exception, that is synced to disk and renamed; otherwise it is removed. A killed process leaves
    it, with ``.NAME.lock`` beside it, and the next one that writes the same folder clears both.

    Args:
        path: the folder to make; missing parents are created.

    Raises:
        ValueError: on entering, if the path exists, cannot be created, or is being written now.
    """
    path = Path(os.path.abspath(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot create {path.parent}: {error.strerror}") from error
    with _lock(path):
        if os.path.lexists(path):
            raise ValueError(f"{path} already exists: remove it or choose another output folder")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            yield partial
            _sync_tree(partial)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync(path.parent)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Write a file that replaces the one at `path` in a single move, once it is on disk.

    Yields the hidden sibling ``.NAME.tmp``, open for bytes. When the block ends with an exception,
    that is removed and the previous file stays. A killed process leaves it, and the next one that
    writes the same file overwrites it; two processes must not write one file at the same time.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which the kernel releases when the process ends."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(f"cannot write in {path.parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous owner may have removed the file between our open and our flock.
            if not os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise ValueError(f"{path} is being written by another process") from None
        except OSError as error:
            raise ValueError(f"cannot lock {lock}: {error.strerror}; use another disk") from error
        try:
            yield
        finally:
            lock.unlink()
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for directory, _, files in os.walk(folder):
        for name in files:
            _sync(Path(directory, name))
        _sync(Path(directory))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

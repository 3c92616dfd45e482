"""Choose the writer and the reader of records by their format: lmdb or aselmdb."""

from __future__ import annotations

from pathlib import Path

from dens.data.store.folders import LmdbFolder
from dens.data.store.lmdb import LmdbWriter

FORMATS = ("lmdb", "aselmdb")


def writer_of(name: str) -> type[LmdbWriter]:
    """Return the writer of a format.

    Raises:
        ValueError: a package that it needs is not installed.
    """
    if name == "lmdb":
        return LmdbWriter
    from dens.data.store.aselmdb import AseLmdbWriter

    return AseLmdbWriter


def find_shards(path: Path) -> list[Path]:
    """List the files of records in a folder, sorted by name.

    Raises:
        ValueError: they are in two formats.
    """
    found = {name: sorted(path.glob(f"*.{name}")) for name in FORMATS}
    if all(found.values()):
        raise ValueError(
            f"{path} has *.lmdb and *.aselmdb: expected one format, the data are taken twice else"
        )
    return [file for files in found.values() for file in files]


def open_folder(path: str | Path) -> LmdbFolder:
    """Open a folder, or a file, of records in the format that its files have."""
    path = Path(path)
    shards = [path] if path.is_file() else find_shards(path)
    if not any(file.suffix == ".aselmdb" for file in shards):
        return LmdbFolder(path)
    from dens.data.store.aselmdb import AseLmdbFolder

    return AseLmdbFolder(path)

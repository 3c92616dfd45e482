"""Which frame goes into which split. Frames are numbered from 0 over all sources, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

BLOCK = 20  # frames; neighbours in an MD trajectory are too alike to be in different splits


def parse_fractions(text: str) -> dict[str, float]:
    """``train=0.8,val_id=0.1,test=0.1`` as a mapping.

    Raises:
        ValueError: not of that form, a name twice, or a sum other than 1.
    """
    fractions: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        try:
            fraction = float(value)
        except ValueError:
            fraction = 0.0
        if not name.isidentifier() or name in fractions or not fraction > 0:
            raise ValueError(
                f"fractions must be like train=0.8,val=0.2, with positive numbers, got {text!r}"
            )
        fractions[name] = fraction
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions must add up to 1, got {text!r}")
    return fractions


def split_by_system(
    groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Whole groups into each split, drawn at random; the fractions are those of the groups.

    Args:
        groups: the group of each frame.

    Returns:
        By split, the numbers of its frames in ascending order.

    Raises:
        ValueError: a split without a group.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    return _draw(group_of, len(names), fractions, seed, "systems")


def split_by_block(
    counts: Sequence[int], fractions: Mapping[str, float], seed: int, length: int = BLOCK
) -> dict[str, np.ndarray]:
    """Blocks of consecutive frames of a source, drawn at random.

    Args:
        counts: number of frames of each source.
        length: number of frames in a block; the last one of a source may have fewer.

    Raises:
        ValueError: a split without a block.
    """
    block_of: list[np.ndarray] = []
    n_blocks = 0
    for count in counts:
        block_of.append(n_blocks + np.arange(count) // length)
        n_blocks += -(-count // length)
    return _draw(np.concatenate(block_of), n_blocks, fractions, seed, "blocks of frames")


def _draw(
    unit_of: np.ndarray, n_units: int, fractions: Mapping[str, float], seed: int, what: str
) -> dict[str, np.ndarray]:
    order = np.random.default_rng(seed).permutation(n_units)
    ends = np.rint(np.cumsum(list(fractions.values())) * n_units).astype(int)
    starts = [0, *ends[:-1]]
    splits = {}
    for name, start, end in zip(fractions, starts, ends, strict=True):
        if start == end:
            raise ValueError(
                f"split {name} is empty: {fractions[name]:g} of {n_units} {what} is none"
            )
        splits[name] = np.flatnonzero(np.isin(unit_of, order[start:end]))
    return splits


def read_index(path: str | Path, n_frames: int) -> np.ndarray:
    """The frame numbers in a file: text with one per line, ``.npy``, or ``.npz`` with one array.

    Returns:
        Ascending, each once.

    Raises:
        ValueError: not such a file, a number twice or outside 0 .. n_frames - 1, or none at all.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                (name,) = file.files
                index = file[name]
        else:
            text = path.suffix != ".npy"
            index = np.array(path.read_text().split(), float) if text else np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: expected frame numbers, one per line or as one array: {error}"
        ) from error
    index = np.asarray(index)
    if index.size == 0:
        raise ValueError(f"{path}: expected frame numbers, got none")
    if index.ndim != 1 or not (index == np.floor(index)).all():
        raise ValueError(f"{path}: expected one list of whole numbers, got shape {index.shape}")
    index = np.sort(index.astype(np.int64))
    if index[0] < 0 or index[-1] >= n_frames:
        wrong = index[0] if index[0] < 0 else index[-1]
        raise ValueError(f"{path}: frame numbers must be in 0 .. {n_frames - 1}, got {wrong}")
    twice = index[1:][index[1:] == index[:-1]]
    if len(twice):
        raise ValueError(f"{path}: frame {twice[0]} is listed twice")
    return index


def split_by_index(files: Mapping[str, str | Path], n_frames: int) -> dict[str, np.ndarray]:
    """The frames that a file lists for each split; frames that no file lists are left out.

    Raises:
        ValueError: see `read_index`; a frame in two splits.
    """
    splits = {name: read_index(path, n_frames) for name, path in files.items()}
    owner: dict[int, str] = {}
    for name, index in splits.items():
        for frame in index.tolist():
            if frame in owner:
                raise ValueError(f"frame {frame} is in both splits, {owner[frame]} and {name}")
            owner[frame] = name
    return splits

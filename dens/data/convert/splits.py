"""Assign frames to splits. Frames are numbered from 0 over all sources, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

BLOCK = 20  # frames; consecutive MD frames are too alike to be in different splits


def parse_fractions(text: str) -> dict[str, float]:
    """Parse ``train=0.8,val_id=0.1,test=0.1``.

    Raises:
        ValueError: another form, a repeated name, or a sum other than 1.
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


def read_index(path: str | Path, n_frames: int) -> np.ndarray:
    """Read frame numbers from a file: text with one per line, ``.npy``, or ``.npz`` with one array.

    Returns:
        Ascending, without duplicates.

    Raises:
        ValueError: another kind of file, no numbers, one twice or outside 0 .. n_frames - 1.
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
    """Read the frames of each split from a file; frames that no file lists are left out.

    Raises:
        ValueError: see `read_index`; a frame in two splits.
    """
    splits = {name: read_index(path, n_frames) for name, path in files.items()}
    for (one, first), (other, second) in combinations(splits.items(), 2):
        common = np.intersect1d(first, second)
        if len(common):
            raise ValueError(f"frame {common[0]} is in both splits, {one} and {other}")
    return splits


@dataclass(frozen=True)
class Splitting:
    """Rule for the split of each frame.

    Attributes:
        rule: by-system or by-block; None for `index`, or for one output folder without splits.
        fractions: by split, see `parse_fractions`.
        index: by split, a file with frame numbers.
        group_key: key in ``atoms.info`` that names the system; None: every source is a system.
        seed: for random splits.
        block: number of consecutive frames in a block.
    """

    rule: str | None = None
    fractions: Mapping[str, float] | None = None
    index: Mapping[str, Path] | None = None
    group_key: str | None = None
    seed: int = 0
    block: int = BLOCK

    def assign(
        self, sources: Mapping[str, int], read_groups: Callable[[], Sequence[str]]
    ) -> dict[str, np.ndarray]:
        """Find, by split, the ascending numbers of its frames over all sources.

        By system or by block, whole units are drawn at random; the fractions count units.

        Args:
            sources: number of frames by the name of the source, at least 1 each.
            read_groups: reads the group of each frame; called if there is a `group_key`.

        Raises:
            ValueError: see `read_index`; a split without frames.
        """
        counts = np.array(list(sources.values()))
        if self.index:
            return split_by_index(self.index, counts.sum())
        if self.rule == "by-block":
            n_blocks = -(-counts // self.block)
            firsts = np.cumsum(n_blocks) - n_blocks
            block_of = [
                first + np.arange(n) // self.block for first, n in zip(firsts, counts, strict=True)
            ]
            return self._draw(np.concatenate(block_of), "blocks of frames")
        if self.rule == "by-system":
            groups = read_groups() if self.group_key else np.repeat(list(sources), counts)
            return self._draw(np.unique(groups, return_inverse=True)[1], "systems")
        return {"": np.arange(counts.sum())}

    def _draw(self, unit_of: np.ndarray, what: str) -> dict[str, np.ndarray]:
        n_units = unit_of.max() + 1
        order = np.random.default_rng(self.seed).permutation(n_units)
        ends = np.rint(np.cumsum(list(self.fractions.values())) * n_units).astype(int)
        splits = {}
        for (name, fraction), start, end in zip(
            self.fractions.items(), [0, *ends[:-1]], ends, strict=True
        ):
            if start == end:
                raise ValueError(f"split {name} is empty: {fraction:g} of {n_units} {what} is none")
            splits[name] = np.flatnonzero(np.isin(unit_of, order[start:end]))
        return splits

    def describe(self) -> dict:
        """Return the settings in plain values."""
        files = {name: str(path) for name, path in (self.index or {}).items()}
        return {
            "split": self.rule or ("by index files" if files else "none"),
            "fractions": self.fractions and dict(self.fractions),
            "index": files or None,
            "group_key": self.group_key,
            "seed": self.seed,
            "block": self.block if self.rule == "by-block" else None,
        }

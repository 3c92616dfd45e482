"""Assign frames to splits. Frames are numbered from 0 over all sources, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from ase import Atoms

from dens.data.sources.ase import FrameSelection
from dens.data.sources.npz import MoleculeFrames

SPLITS = ("train", "val", "test")  # of a molecule
CHUNK = 256  # frames per task
WHOLE_CHUNK = 4096  # frames per task of a file that is read as a whole for any of its frames
BLOCK = 20  # frames; consecutive MD frames are too alike to be in different splits


def parse_fractions(text: str) -> dict[str, float]:
    """Parse ``train=0.8,val_id=0.1,test=0.1``.

    >>> parse_fractions("train=0.8,val=0.2")
    {'train': 0.8, 'val': 0.2}

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


def read_group(key: str, atoms: Atoms, own: str) -> str:
    """Read the group of a frame: the text of a key.

    Args:
        own: name of a group of the frame alone, which it gets where the text is empty.

    Raises:
        ValueError: the frame does not have the key.
    """
    if key not in atoms.info:
        known = ", ".join(map(str, atoms.info)) or "nothing"
        raise ValueError(f"expected the key {key!r} in its info, which has {known}")
    return str(atoms.info[key]) or own


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
        self, sources: Mapping[str, int], read_groups: Callable[[], Sequence[str | None]]
    ) -> dict[str, np.ndarray]:
        """Find, by split, the ascending numbers of its frames over all sources.

        By system or by block, whole units are drawn at random; the fractions count units.

        Args:
            sources: number of frames by the name of the source, at least 1 each.
            read_groups: reads the group of each frame, None for a bad one, which goes to the first
                split to be counted there; called if there is a `group_key`.

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
            good = np.array([group is not None for group in groups])
            if not good.any():
                raise ValueError(
                    f"all {len(good)} frames are bad: none has the group of its system"
                )
            named = np.array([group for group in groups if group is not None])
            units = np.full(len(good), -1)
            units[good] = np.unique(named, return_inverse=True)[1]
            splits = self._draw(units, "systems")
            first = next(iter(splits))
            splits[first] = np.union1d(splits[first], np.flatnonzero(~good))
            return splits
        return {"": np.arange(counts.sum())}

    def _draw(self, unit_of: np.ndarray, what: str) -> dict[str, np.ndarray]:
        n_units = unit_of.max() + 1
        order = np.random.default_rng(self.seed).permutation(n_units)
        ends = np.rint(np.cumsum(list(self.fractions.values())) * n_units).astype(int)
        is_one_file = what == "systems" and self.group_key is None and n_units == 1
        hint = ": --group-key names the system of each frame" if is_one_file else ""
        splits = {}
        for (name, fraction), start, end in zip(
            self.fractions.items(), [0, *ends[:-1]], ends, strict=True
        ):
            if start == end:
                none = f"{fraction:g} of {n_units} {what} is none{hint}"
                raise ValueError(f"split {name} is empty: {none}")
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


def make_tasks(sources: Sequence[FrameSelection], numbers: np.ndarray) -> Iterator[FrameSelection]:
    """Divide frames, given by ascending numbers over all sources, into tasks of one source each."""
    end = 0
    for frames in sources:
        start, end = end, end + len(frames.numbers)
        low, high = np.searchsorted(numbers, [start, end])
        own = (numbers[low:high] - start).tolist()
        chunk = WHOLE_CHUNK if frames.source.is_read_whole else CHUNK
        for first in range(0, len(own), chunk):
            yield frames.select(own[first : first + chunk])


def split_molecule_by_seed(
    frames: dict[str, MoleculeFrames], n_train: int, n_val: int, seed: int
) -> dict[str, np.ndarray]:
    """Draw the frames of train and val at random; test gets the rest, or its own file.

    Args:
        frames: that each split is taken from.

    Raises:
        ValueError: too few frames.
    """
    main, test = frames["train"], frames["test"]
    if n_train < 2 or n_val < 1 or n_train + n_val > len(main):
        raise ValueError(
            f"{main.path}: expected at least 2 training and 1 validation frames, and no more than "
            f"its {len(main)}, got --train {n_train} --val {n_val}"
        )
    order = np.random.default_rng(seed).permutation(len(main))
    parts = np.split(order, [n_train, n_train + n_val])
    index = {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)}
    return index if test is main else {**index, "test": np.arange(len(test))}


def split_molecule_by_files(
    frames: dict[str, MoleculeFrames], files: Mapping[str, str | Path], n_val: int, seed: int
) -> dict[str, np.ndarray]:
    """Read the frames of the splits from files; see `dens.data.convert.md17.convert_md17`.

    Raises:
        ValueError: see `read_index`; files that do not fit the frames or each other.
    """
    main = frames["train"]
    if frames["test"] is not main:
        raise ValueError(f"{main.path}: has a test file beside it, so index files do not fit it")
    if "train" not in files:
        raise ValueError(f"--{next(iter(files))}-index needs --train-index beside it")
    index = split_by_index(files, len(main))
    if "val" not in index:
        if not 1 <= n_val <= len(index["train"]) - 2:
            raise ValueError(
                f"{files['train']}: expected --val to be at least 1 and to leave at least 2 of "
                f"its {len(index['train'])} frames for training, got {n_val}"
            )
        order = np.random.default_rng(seed).permutation(index["train"])
        index["val"], index["train"] = np.sort(order[:n_val]), np.sort(order[n_val:])
    if "test" not in index:
        used = np.concatenate([index["train"], index["val"]])
        index["test"] = np.setdiff1d(np.arange(len(main)), used)
    return {name: index[name] for name in SPLITS}


def draw_test(rest: np.ndarray, count: int | None, seed: int, path: Path) -> np.ndarray:
    """Draw `count` test frames from the rest; None takes all of them."""
    if count is None and len(rest) == 0:
        raise ValueError(
            f"{path}: no frame is left for the test split: lower --train or --val, or say --test 0"
        )
    if count is None:
        return rest
    if not 0 <= count <= len(rest):
        raise ValueError(f"{path}: --test must be in 0 .. {len(rest)}, got {count}")
    return np.sort(np.random.default_rng(seed).permutation(rest)[:count])

"""Leave out bad frames and files, count them by reason, and say which."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ase import Atoms

from dens.data.sources.ase import (
    FrameSelection,
    index_source,
    map_frames,
    read_frames,
)
from dens.data.sources.search import Source

ON_BAD = ("error", "skip")
EXAMPLES = 3  # places named for each reason
_Result = TypeVar("_Result")
# by the reason without its numbers: the first reason in full, frames, and the first places
Skipped = dict[str, dict[str, Any]]

_WHERE = re.compile(r"structure sid=.*? fid=\d+: ")
_NUMBER = re.compile(r"[-+]?\d[\d.]*(?:e[-+]?\d+)?", re.IGNORECASE)


class BadFrame(NamedTuple):
    """A frame, or a file of several, that is left out: where it is, and why."""

    place: str
    reason: str
    frames: int = 1


def bad_file(path: str, error: ValueError, frames: int = 1) -> BadFrame:
    """Make the report on a file that cannot be read; with `frames` it counts as so many."""
    return BadFrame(path, str(error).removeprefix(f"{path}: "), frames)


def all_bad(files: Sequence[BadFrame]) -> ValueError:
    """Make the error that all files are bad."""
    return ValueError(
        f"all {len(files)} files are bad, the first: {files[0].place}: {files[0].reason}"
    )


def cut_frame(frames: FrameSelection) -> list[BadFrame]:
    """Report the frame that ends a file which is cut off; nothing for a whole file."""
    if not frames.cut:
        return []
    return [BadFrame(f"{frames.source.path}, frame {frames.numbers[-1] + 1}", frames.cut)]


def map_good_frames(
    function: Callable[[int, Atoms], _Result], frames: FrameSelection, on_bad: str
) -> Iterator[_Result | BadFrame]:
    """Call a function with the number and the structure of each frame.

    Args:
        function: raises ValueError for a bad frame.
        frames: of one file.
        on_bad: ``skip`` yields a `BadFrame` for each that cannot be read or that the function
            refuses; ``error`` lets the error through.

    Raises:
        ValueError: with ``error``, names file and frame.
    """
    if on_bad == "error":
        yield from map_frames(function, frames)
        return
    path, done = frames.source.path, 0
    while done < len(frames.numbers):
        rest = frames.select(range(done, len(frames.numbers)))
        try:
            for number, atoms in read_frames(rest):
                done += 1
                try:
                    result = function(number, atoms)
                except ValueError as error:
                    result = BadFrame(f"{path}, frame {number}", str(error))
                yield result
        except ValueError as error:  # the reader stops there: go on behind it
            place = f"{path}, frame {frames.numbers[done]}"
            yield BadFrame(place, bad_file(path, error).reason.removeprefix(f"{place}: "))
            done += 1


def index_good_sources(
    sources: Iterable[Source], on_bad: str, run_map: Callable[..., Iterator]
) -> tuple[list[FrameSelection], list[BadFrame]]:
    """Find the frames of all files, and the files left out with ``skip``.

    Raises:
        ValueError: a file that cannot be read, or with ``skip`` only such files.
    """
    results = list(run_map(partial(_index, on_bad), sources))
    bad = [result for result in results if isinstance(result, BadFrame)]
    if len(bad) == len(results):
        raise all_bad(bad)
    return [result for result in results if not isinstance(result, BadFrame)], bad


def _index(on_bad: str, source: Source) -> FrameSelection | BadFrame:
    try:
        return index_source(source, allow_cut=on_bad == "skip")
    except ValueError as error:
        if on_bad == "error":
            raise
        return bad_file(source.path, error)


def count_bad(found: Iterable[BadFrame]) -> Skipped:
    """Count bad frames by reason."""
    skipped: Skipped = {}
    for bad in found:
        reason = " ".join(_WHERE.sub("", bad.reason).split())
        entry = {"reason": reason, "count": bad.frames, "first": [bad.place]}
        merge_skipped(skipped, {_NUMBER.sub("#", reason): entry})
    return skipped


def merge_skipped(skipped: Skipped, more: Mapping[str, Mapping[str, Any]]) -> None:
    """Add the counts of what comes later."""
    for kind, entry in more.items():
        known = skipped.setdefault(kind, {"reason": entry["reason"], "count": 0, "first": []})
        known["count"] += entry["count"]
        known["first"] = [*known["first"], *entry["first"]][:EXAMPLES]


def describe_skipped(entries: Iterable[Mapping[str, Any]], what: str) -> Iterator[str]:
    """Yield one line for each reason, with the number of frames or files and the first of them."""
    for entry in entries:
        more = "; ..." if entry["count"] > len(entry["first"]) else ""
        places = "; ".join(entry["first"])
        yield f"{entry['count']} bad {what} left out: {entry['reason']}: {places}{more}"

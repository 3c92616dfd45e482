"""Join the results of several runs, and format them as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.relaxation.molecules import GIVEN
from benchmarks.relaxation.score import ALL, SHARED, TIMES
from benchmarks.relaxation.speed import format_speed

# what results must have in common to stand in one table
_SAME = ("data", "structures", "every", "baseline_every", "seed")
_HEAD = (
    "start",
    "method",
    "RMSD, Å: median / p90 / mean",
    "of that before",
    "nearer",
    "converged",
    "same molecule",
    "calls: median (p99)",
    "ms",
)


def format_files(paths: Sequence[Path]) -> str:
    """Format stored results: those of ``--speed`` from one file, others joined.

    Raises:
        ValueError: see :func:`read_results`.
    """
    result = _read(paths[0])
    if len(paths) == 1 and "speed" in result:
        return f"{result['about']['hardware']}, {format_speed(result['speed'])}"
    return format_result(read_results(paths))


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        _ = result["about"], result.get("speed") or result["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of benchmarks.relaxation: {error}") from None
    return result


def read_results(paths: Sequence[Path]) -> dict[str, Any]:
    """Read stored results and join them.

    Raises:
        ValueError: a file is none, files differ in structures or starts, a run stands in two, or
            runs of one name, its seeds, have other settings.
    """
    joined: dict[str, Any] = {}
    for path in paths:
        result = _read(path)
        if "runs" not in result:
            raise ValueError(f"{path} is a result of --speed: it stands alone in --table")
        if not joined:
            joined = result
            continue
        about, runs = result["about"], result["runs"]
        for key in _SAME:
            if about.get(key) != joined["about"].get(key):
                raise ValueError(
                    f"{path} is of another set: {key} is {about.get(key)}, in {paths[0]} "
                    f"{joined['about'].get(key)}"
                )
        known = {(run["name"], run["run"]) for run in joined["runs"]}
        for run in runs:
            if (run["name"], run["run"]) in known:
                raise ValueError(f"{path} holds {run['name']} ({run['run']}), as another file does")
            for other in joined["runs"]:
                _check_starts(path, run, other)
                if run["name"] == other["name"]:
                    _check_settings(path, run, other)
        joined["runs"] += runs
        joined["same_at_start"] = {**result["same_at_start"], **joined["same_at_start"]}
    return joined


def _check_starts(path: Path, run: dict[str, Any], other: dict[str, Any]) -> None:
    """Refuse runs that began from other structures."""
    for start, rows in run["starts"].items():
        for which in rows.keys() & other["starts"].get(start, {}).keys():
            own, theirs = (r["starts"][start][which]["before_mean"] for r in (run, other))
            if not math.isclose(own, theirs, rel_tol=1e-4):
                raise ValueError(
                    f"{path}: start {start} has other draws, a mean RMSD of {own} Å, not {theirs} Å"
                )


def _check_settings(path: Path, run: dict[str, Any], other: dict[str, Any]) -> None:
    """Refuse to average runs that were made in different ways."""
    ours, theirs = (
        {**r.get("settings", {}), "raw": r.get("raw", False), "starts": [*r["starts"]]}
        for r in (run, other)
    )
    if differing := [key for key in ours if ours[key] != theirs.get(key)]:
        key = differing[0]
        raise ValueError(
            f"{path} holds no seed of {run['name']} in another file: {key} is {ours[key]}, there "
            f"{theirs.get(key)}; give it a --name of its own"
        )


def format_result(result: dict[str, Any]) -> str:
    """Format tables of the accuracy on all structures, beside baselines, and of the time head."""
    groups = _by_name(result["runs"])
    about = result["about"]
    parts = [f"{about['n']} structures of `{about['data']}`, {about['hardware']}."]
    several = {name: len(runs) for name, runs in groups.items() if len(runs) > 1}
    if several:
        counts = ", ".join(f"{name}: {n}" for name, n in several.items())
        parts[0] += f" Mean ± sd over seeds ({counts})."
    if lines := _accuracy(result, groups, ALL):
        parts.append("\n".join(lines))
    if any(SHARED in row and ALL not in row for run in result["runs"] for row in _rows_of(run)):
        step = about["baseline_every"]
        parts.append(f"Structures whose number is a multiple of {step}, which baselines relax too:")
        parts.append("\n".join(_accuracy(result, groups, SHARED)))
    if lines := _levels(groups):
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _rows_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    return list(run["starts"].values())


def _by_name(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["name"], []).append(run)
    return groups


def _accuracy(result: dict[str, Any], groups: dict[str, list], which: str) -> list[str]:
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
    for start, same in result["same_at_start"].items():
        label = "given (`pos_start`)" if start == GIVEN else f"noise {start} Å"
        before = None
        for name, runs in groups.items():
            found = [run["starts"].get(start, {}) for run in runs]
            rows = [row[which] for row in found if which in row]
            if not rows:
                continue
            if before is None:
                before = _distances(rows[:1], "before")
                cells = [label, "the start", before, "", "", "", _percent([same[which]]), "", ""]
                lines.append(_line(cells))
            lines.append(_line([label, name, *_cells(rows)]))
    return lines if len(lines) > 2 else []


def _cells(rows: list[dict[str, float]]) -> list[str]:
    def values(key: str) -> list[float]:
        return [row.get(key) for row in rows]

    middle, high = _number(values("calls_median"), "{:.0f}"), _number(values("calls_p99"), "{:.0f}")
    return [
        _distances(rows, "after"),
        _number(values("ratio"), "{:.2f}"),
        _percent(values("nearer")),
        _percent(values("converged")),
        _percent(values("same_molecule")),
        "-" if middle == "-" else f"{middle} ({high})",
        _number(values("ms"), "{:.3g}", _two_digits),
    ]


def _distances(rows: list[dict[str, float]], when: str) -> str:
    names = ("median", "p90", "mean")
    return " / ".join(_number([row[f"{when}_{n}"] for row in rows], "{:.3f}") for n in names)


def _two_digits(value: float) -> str:
    return f"{value:.2g}"


def _percent(values: Sequence[float | None]) -> str:
    scaled = [None if value is None else 100 * value for value in values]
    return _number(scaled, "{:.1f}") + " %" if _known(scaled) else "-"


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and not math.isnan(value)]


def _number(
    values: Sequence[float | None], form: str, spread: Callable[[float], str] | None = None
) -> str:
    """Format the mean of what is known, and its standard deviation if there are several."""
    known = _known(values)
    if not known:
        return "-"
    text = form.format(mean(known))
    if len(known) > 1:
        text += f" ± {(spread or form.format)(stdev(known))}"
    return text


def _levels(groups: dict[str, list]) -> list[str]:
    """Format the rank correlation, and what time heads find at known levels."""
    models = {name: runs for name, runs in groups.items() if "time" in runs[0]}
    if not models:
        return []
    times = [
        str(t) for t in TIMES if all(str(t) in r["time"] for rs in models.values() for r in rs)
    ]
    kinds = list(dict.fromkeys(k for rs in models.values() for k in rs[0]["rank_correlation"]))
    head = [
        "method",
        *(f"rank correlation, {kind}" for kind in kinds),
        *(f"t = {t}" for t in times),
    ]
    lines = [_line(head), "|---" * len(head) + "|"]
    for name, runs in models.items():
        cells = [name]
        cells += [_number([r["rank_correlation"].get(k) for r in runs], "{:.3f}") for k in kinds]
        for t in times:
            middle, sd = (
                _number([r["time"][t][k] for r in runs], "{:.1f}") for k in ("mean", "sd")
            )
            cells.append(f"{middle}; sd {sd}")
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

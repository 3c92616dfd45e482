"""metrics.jsonl: always whole lines, exactly one for each step and split."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dens.runs.history import History, read_history


def lines(path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_calls_for_one_step_and_split_make_one_line(tmp_path):
    path = tmp_path / "logs" / "metrics.jsonl"
    history = History(path)
    history.add({"grad_norm": torch.tensor(2.5)}, 1, "train")
    assert lines(path) == [{"step": 1, "split": "train", "grad_norm": 2.5}]  # on disk at once
    history.add({"loss": np.float32(0.5), "step": 1, "note": "no number"}, 1, "train")
    history.add({"forces_mae": float("nan")}, 1, "val")
    history.add({"lr": 0.125}, 1, "train")
    history.add({"loss": 3, "several": torch.ones(2)}, 2, "train")
    first, val, second = lines(path)
    assert first == {"step": 1, "split": "train", "grad_norm": 2.5, "loss": 0.5, "lr": 0.125}
    assert math.isnan(val["forces_mae"])
    assert second == {"step": 2, "split": "train", "loss": 3}
    assert [line["step"] for line in read_history(path)] == [1, 1, 2]


def test_a_torn_line_and_repeated_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(path)
    for step in range(1, 6):
        history.add({"loss": step}, step, "train")
        history.add({"loss": step}, step, "val")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 6, "split": "tra')  # killed while writing
    assert len(read_history(path)) == 10
    history = History(path)
    assert path.read_bytes() == whole
    history.drop_from(4)
    history.add({"loss": -4}, 4, "train")
    kept = [(line["step"], line["split"], line["loss"]) for line in lines(path)]
    assert kept[-3:] == [(3, "train", 3), (3, "val", 3), (4, "train", -4)]
    assert len(kept) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("text", ["[1, 2]", "{'step': 1}", '{"step": 1}'])
def test_an_invalid_line_is_named(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "val"}\n' + text + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 must be a JSON object with step"):
        read_history(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_history(tmp_path / "none.jsonl")

"""``dens check`` compares the normalisers of the stress with the data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import yaml
from helpers.stress_settings import STRESS_HEAD
from helpers.stressed import some_frames, write_frames
from helpers.trainers import MODEL, file_config, trainer_config

from dens.data.bulk.stress_labels import parts_of
from dens.fairchem1.check import command as checkup


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """Config of a model that learns the stress, with the normalisers of its data."""
    frames = some_frames()
    isotropic, anisotropic = zip(*(parts_of(frame.stress) for frame in frames), strict=True)
    source = write_frames(tmp_path_factory.mktemp("bulk") / "train", frames)
    model = {**MODEL, "heads": {**MODEL["heads"], "stress": STRESS_HEAD}}
    base = trainer_config(source, model=model)
    base["dataset"]["train"]["transforms"]["normalizer"] |= {
        "stress_isotropic": {"mean": float(np.mean(isotropic)), "stdev": float(np.std(isotropic))},
        "stress_anisotropic": {"mean": 0.0, "stdev": float(np.sqrt(np.square(anisotropic).mean()))},
    }
    optim = base["optimizer"] | {"max_epochs": 10}
    return file_config(base, optim=optim, dataset=base["dataset"], logger="tensorboard")


CHANGES = [
    ("stress_isotropic", lambda scale: scale, "ok     stress_isotropic: mean "),
    ("stress_anisotropic", lambda scale: scale, "ok     stress_anisotropic: mean 0, stdev "),
    (
        "stress_isotropic",
        lambda scale: scale | {"stdev": 10 * scale["stdev"]},
        "warn   stress_isotropic: stdev {stdev:.4g} is 10 times too large for the sample's ",
    ),
    (
        "stress_isotropic",
        lambda scale: scale | {"mean": 10.0},
        "warn   stress_isotropic: mean 10 is ",
    ),
    (
        "stress_anisotropic",
        lambda scale: scale | {"mean": 0.1 * scale["stdev"]},
        "warn   stress_anisotropic: mean {mean:.4g} must be 0: it is not equivariant (",
    ),
    (
        "stress_anisotropic",
        lambda scale: None,
        "warn   stress_anisotropic: without a normaliser, the scale 1 is ",
    ),
]


@pytest.mark.parametrize(("part", "change", "finding"), CHANGES)
def test_normalisers_of_the_stress(part, change, finding, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkup, "_check_step", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    changed = copy.deepcopy(config)
    scales = changed["dataset"]["train"]["transforms"]["normalizer"]
    scales[part] = change(scales[part])
    if scales[part] is None:
        del scales[part]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(changed))
    checkup.check_command(tmp_path / "config.yml")
    lines = capsys.readouterr().out.splitlines()
    expected = finding.format(**scales.get(part, {}))
    (found,) = (line for line in lines if line.startswith(expected))
    assert "total energies" not in found

"""Study files: YAML in ``experiments/studies``, expanded into training runs.

A run is one arm (a config) of one variant (such as a size of the training set) with one seed. Its
config is the arm's file, but for the keys in ``without``, with the settings of study, variant and
arm merged into it, in that order. Nothing here needs fairchem. Runs of fairchem-core 2 and of 1.10
need an environment each.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from click import ClickException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).parent.parent
TRAINERS = ("dens", "dens.DeNSTrainer")  # of fairchem-core 1.10, names of the one that is measured
# by host: no account is asked for, nothing but training takes time, no loader takes another core
NO_WATCH = {"denoising_structures": 0, "figures_every": 0, "gradients_every": 0}
ALL_RUNS = {
    1: {"logger": {"name": "tensorboard"}, "optim": {"num_workers": 0, "watch": NO_WATCH}},
    2: {
        "job": {"device_type": "CPU", "debug": True},
        "loader": {"num_workers": 0},
        "runner": {"train_eval_unit": {"watch": NO_WATCH}},
    },
}


class Part(BaseModel):
    """Schema of study files: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    settings: dict[str, Any] = Field({}, description="merged into the config, nested as it is")


class Arm(Part):
    config: Path = Field(description="a training config, relative to the repository")
    variants: list[str] | None = Field(
        None, min_length=1, description="those it is run for; all by default"
    )
    seeds: list[int] | None = Field(
        None, min_length=1, description="those of a variant's that it is run for; all by default"
    )


class Variant(Part):
    structures: int | None = Field(None, ge=1, description="that training has, for the overview")
    tests: dict[str, str] = Field({}, description="folder by name of a test set")
    seeds: list[int] | None = Field(None, min_length=1, description="those of the study by default")

    @property
    def measured_on(self) -> list[str]:
        """Return the names of the test sets, or ``val`` for a search, which has none."""
        return [*self.tests] or ["val"]


class Study(Part):
    """A study file."""

    title: str
    data: dict[str, str] = Field({}, description="command by the folder that it makes")
    seeds: list[int] = Field(min_length=1)
    reference: str = Field(description="the arm that the others are compared with")
    overview: list[str] = Field(
        [], description="the arms that the table over all studies compares with the reference"
    )
    without: list[str] = Field(
        [], description="keys, as optim.dens.clean_end, that the arms' files have and no run takes"
    )
    arms: dict[str, Arm]
    variants: dict[str, Variant]
    sigmas: list[float] = Field([], description="Å; noise levels to measure denoising at")

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if self.reference not in self.arms:
            raise ValueError(f"reference must be one of the arms {[*self.arms]}")
        parts = [self, *self.variants.values(), *self.arms.values()]
        for seeds in filter(None, (part.seeds for part in parts)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"seeds must differ, got {seeds}")
        for name, arm in self.arms.items():
            if not {*(arm.variants or [])} <= {*self.variants}:
                raise ValueError(
                    f"arms.{name}.variants must be of {[*self.variants]}, got {arm.variants}"
                )
            for variant in arm.variants or self.variants:
                if not self.seeds_of(variant, name):
                    raise ValueError(
                        f"arms.{name}.seeds must have some of {variant}'s, got {arm.seeds}"
                    )
        reference = self.arms[self.reference]
        if reference.variants is not None or reference.seeds is not None:
            raise ValueError(
                f"reference {self.reference!r} must be run for all variants and their seeds"
            )
        if self.overview:
            if not {*self.overview} <= {*self.arms}:
                raise ValueError(f"overview must be some of the arms {[*self.arms]}")
            unknown = [name for name, v in self.variants.items() if v.structures is None]
            if unknown:
                raise ValueError(f"variants.{unknown[0]}.structures is missing: overview needs it")
        bad = [name for name in [*self.arms, *self.variants] if not name.isidentifier()]
        if bad:
            raise ValueError(f"names of arms and variants must be identifiers, got {bad[0]!r}")
        return self

    def seeds_of(self, variant: str, arm: str) -> list[int]:
        """Return the seeds that an arm of a variant is run for."""
        seeds, own = self.variants[variant].seeds or self.seeds, self.arms[arm].seeds
        return [seed for seed in seeds if own is None or seed in own]

    def arms_of(self, variant: str) -> list[str]:
        """Return the names of the arms that are run for a variant."""
        return [name for name, arm in self.arms.items() if variant in (arm.variants or [variant])]


@dataclass(frozen=True)
class Run:
    """Training run of a study; ``config`` holds its complete settings."""

    study: str
    variant: str
    arm: str
    seed: int
    source: Path
    settings: dict
    config: dict
    tests: dict
    sigmas: list

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.arm}-seed{self.seed}"

    @property
    def host(self) -> int:
        """Major version of fairchem-core that trains it."""
        return host_of(self.source)

    @property
    def fingerprint(self) -> str:
        """Hash of config, measurements and seed."""
        parts = [self.config, self.tests, self.sigmas, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ClickException: it is missing or wrong; a line for each mistake, with file and key.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yml"))) or "none"
        raise ClickException(f"{path} does not exist: the studies there are {known}")
    try:
        return Study.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, e['loc'])) or 'study'}: {e['msg']}, got {e['input']!r}"
            if e["loc"]
            else f"{path}: {e['ctx']['error']}"
            for e in error.errors()
        )
        raise ClickException("\n".join(lines)) from None


def expand(name: str, study: Study) -> list[Run]:
    """Expand a study into runs, seed by seed, so that an interrupted one has pairs to compare.

    Raises:
        ClickException: an arm's config is missing, of another trainer, or lacks a key that it is
            to be taken without.
    """
    runs = []
    places = [(variant, arm) for variant in study.variants for arm in study.arms_of(variant)]
    seeds = dict.fromkeys(s for v in study.variants for s in study.seeds_of(v, study.reference))
    wanted = [(*p, seed) for seed in seeds for p in places if seed in study.seeds_of(*p)]
    for variant_name, arm_name, seed in wanted:
        variant, arm, settings = study.variants[variant_name], study.arms[arm_name], {}
        for part in (ALL_RUNS[host_of(arm.config)], study.settings, variant.settings, arm.settings):
            settings = merged(settings, part)
        config = read_config(ROOT / arm.config)
        for key in study.without:
            config = _without(config, key, arm.config)
        config = merged(config, settings)
        if host_of(arm.config) == 1 and config.get("trainer") not in TRAINERS:
            raise ClickException(
                f"arms.{arm_name}: trainer must be one of {[*TRAINERS]}, got "
                f"{config.get('trainer')!r} in {arm.config}: a baseline is the config with "
                "DeNS, and optim.dens.prob: 0"
            )
        place = (name, variant_name, arm_name, seed, arm.config)
        runs.append(Run(*place, settings, config, variant.tests, study.sigmas))
    return runs


def host_of(config: Path) -> int:
    """Tell the major version of fairchem-core that a config is for, by its suffix."""
    return 2 if config.suffix == ".yaml" else 1


def read_config(path: Path) -> dict:
    """Read a training config with its ``includes``, or ``defaults`` with fairchem-core 2."""
    if not path.is_file():
        raise ClickException(f"{path} does not exist (config of an arm)")
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    config: dict = {}
    others = [f"{name}.yaml" for name in own.pop("defaults", []) if name != "_self_"]
    for other in own.pop("includes", []) + others:
        config = merged(config, read_config(path.parent / other))
    return merged(config, own)


def _without(config: dict, key: str, file: Path) -> dict:
    """Leave out a key, written with dots."""
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    section = config
    for name in path:
        section = section.get(name, {})
    if last not in section:
        raise ClickException(f"without: {file} has no key {key}")
    del section[last]
    return config


def merged(a: Mapping, b: Mapping) -> dict:
    """Merge `b` into `a`, mappings key by key."""
    both = {k: merged(a[k], b[k]) for k in a.keys() & b.keys() if _maps(a[k]) and _maps(b[k])}
    return {**a, **b, **both}


def _maps(value: Any) -> bool:
    return isinstance(value, Mapping)

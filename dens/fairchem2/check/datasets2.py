"""Read the data of a fairchem-core 2 config, record by record, as its training does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from torch_geometric.data import Data

from dens.data.canonical import canonical
from dens.data.soundness import LABELS, USUAL
from dens.data.survey.samples import FolderReader
from dens.fairchem2.check.compose import compose
from dens.settings import ConfigError

LOADERS = {"train": "train_dataloader", "val": "eval_dataloader"}
_KEPT = ("pos", "cell", "pbc", "atomic_numbers", "natoms", "fixed", "tags")
_IDENTIFIERS = ("sid", "dataset")
_LABELS = (*LABELS, "stress")


class Records:
    """The structures of a data set of fairchem-core 2 as records of PyG, in its order.

    Attributes:
        host: fairchem's data set.
        paths: what its sections name as ``src``.
    """

    def __init__(self, host: Any, section: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.host = host
        self.paths = [Path(src) for src in sources_of(section)]
        self._names = names  # of the labels, by the names of tasks

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, i: int) -> Data:
        return self.of(self.host[i])

    def of(self, data: Any) -> Data:
        """Make a record of one of fairchem's structures; labels get the names of their kinds."""
        names = [*_KEPT, *_IDENTIFIERS, *_LABELS, *self._names]
        values = {name: getattr(data, name, None) for name in names}
        fields = {name: values[name] for name in _KEPT}
        fields |= {name: _single(values[name]) for name in _IDENTIFIERS}
        for name in (*_LABELS, *self._names):  # the name of a task goes before its kind
            if values[name] is not None:
                fields[self._names.get(name, name)] = values[name]
        if isinstance(stress := fields.get("stress"), torch.Tensor) and stress.numel() == 9:
            fields["stress"] = stress.view(1, 3, 3)
        return canonical(Data.from_dict({k: v for k, v in fields.items() if v is not None}))


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def sources_of(section: Mapping[str, Any]) -> list[str]:
    """List the paths of a ``dataset`` section of a loader."""
    found = []
    for own in section["dataset_configs"].values():
        for split in own["splits"].values():
            src = split.get("src", own.get("src", []))
            found += [src] if isinstance(src, str) else list(src)
    return found


def open_records(runner: Mapping[str, Any], split: str) -> Records:
    """Open the data of ``train`` or ``val`` of a runner's section, in plain values.

    Raises:
        ConfigError: there is no such section, a file is missing, or none can be read.
    """
    where = f"runner.{LOADERS[split]}.dataset"
    section = (runner.get(LOADERS[split]) or {}).get("dataset")
    if not isinstance(section, Mapping) or "dataset_configs" not in section:
        raise ConfigError(f"expected {where} with dataset_configs, got {section!r:.60}")
    for src in sources_of(section):
        if not Path(src).exists() and not any(Path().glob(src) if src[:1] != "/" else ()):
            raise ConfigError(f"{src} does not exist ({where}.dataset_configs)")
    try:
        host = hydra.utils.instantiate(OmegaConf.create(dict(section)))
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{' '.join(str(cause).split())} ({where})") from error
    tasks = (runner.get("train_eval_unit") or {}).get("tasks") or ()
    return Records(host, section, {task["name"]: task["property"] for task in tasks})


class ConfigReader(FolderReader):
    """Reader of the data of a config, for ``dens data check`` and ``dens data stats``."""

    levels: Mapping[str, str] = USUAL

    def __init__(self, path: str | Path) -> None:
        runner = OmegaConf.to_container(compose(path), resolve=True)["runner"]
        backbone = (runner["train_eval_unit"].get("model") or {}).get("backbone") or {}
        self.runner = runner
        limits = {"max_radius": backbone.get("cutoff", 6.0)}  # under the names of 1.10
        self.config = {"model": {"backbone": limits}}

    def open(self, source: str | Path, split: str = "train") -> Any:
        """Open the data of a split; the config names them."""
        return open_records(self.runner, split)

    def is_of_fairchem2(self, dataset: Any) -> bool:
        return True

    def sources(self, path: str | None) -> dict[str, Any]:
        if path is not None:
            raise ValueError(
                f"with --config, the data are those of the config: leave out {path}, or --config"
            )
        return {
            split: ", ".join(sources_of(self.runner[loader]["dataset"]))
            for split, loader in LOADERS.items()
            if self.runner.get(loader)
        }

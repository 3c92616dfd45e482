"""Check the inputs of a run before it starts: data, checkpoint, W&B login."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dens.data.store.lmdb import describe_missing
from dens.fairchem1.config.read import split_settings
from dens.settings import ConfigError

_NEEDED = {"train": "train", "validate": "val", "predict": "test", "run-relaxations": "relax"}
_DEMO = "dens data demo data/demo && fairchem main.py --config configs/oc20/eqv2_dens_demo.yml"


def check_inputs(config: Mapping[str, Any]) -> None:
    """Refuse a run whose data set or checkpoint is missing.

    All splits of the config must exist: fairchem opens them all, in every mode.

    Raises:
        ConfigError: one line that names the keys and paths, how to get the data, and the demo.
    """
    mode, checkpoint = config["mode"], config.get("checkpoint")
    if mode != "train" and not checkpoint:
        raise ConfigError(f"--mode {mode} needs --checkpoint FILE")
    if checkpoint and not os.path.exists(checkpoint):
        raise ConfigError(f"--checkpoint {checkpoint} does not exist")
    if "datasets" in config:  # the layout of fairchem's multitask trainer
        return
    sources = list(_sources(config.get("dataset")))
    key = f"dataset.{_NEEDED[mode]}.src"
    if key not in [source for source, _, _ in sources]:
        raise ConfigError(f"{key} is missing: --mode {mode} reads its data from there")
    missing = [(key, src) for key, src, is_lmdb in sources if not _is_there(src, is_lmdb)]
    if missing:
        named = ", ".join(f"{key} = {src}{_instead(src)}" for key, src in missing)
        how = dict.fromkeys(_how_to_get(key, src) for key, src in missing)
        raise ConfigError(
            f"no data there: {named}; {' && '.join(how)}; to run the demo instead: {_DEMO}"
        )


def is_present(settings: Mapping[str, Any]) -> bool:
    """Tell whether all data exist that the settings of a split name."""
    return all(_is_there(src, is_lmdb) for src, is_lmdb in _paths(settings))


def _sources(dataset: Any) -> Iterator[tuple[str, str, bool]]:
    """List key, path and whether it is LMDB, for all data that ``dataset`` names."""
    for name, settings in split_settings(dataset).items():
        for src, is_lmdb in _paths(settings):
            yield f"dataset.{name}.src", src, is_lmdb


def _paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    src = settings["src"]
    is_lmdb = str(settings.get("format", "lmdb")).endswith("lmdb")
    for path in src if isinstance(src, list | tuple) else [src]:
        yield str(path), is_lmdb


def _is_there(src: str, is_lmdb: bool) -> bool:
    if is_lmdb and os.path.isdir(src):  # an aborted download leaves an empty folder
        return any(Path(src).glob("*.lmdb"))
    # ASE data may be named by a pattern, or be a server
    return os.path.exists(src) or bool(glob.glob(src)) or "://" in src


def _instead(src: str) -> str:
    what = describe_missing(src)
    return f" ({what})" if what else ""


def _how_to_get(key: str, src: str) -> str:
    """Write the command that makes ``src``, if it is a folder of a shipped config."""
    md17 = re.fullmatch(r"((?:.*/)?md17/(\w+))/(?:train|val|test)/?", src)
    if md17:
        folder, molecule = md17.groups()
        return f"dens data md17 {molecule} --download --out {folder}"
    oc20 = re.fullmatch(r"(?:(.*)/)?s2ef/(?:all/(val_\w+)|(?!all_md)(\w+)/train)/?", src)
    if not oc20:
        return f"set {key} to where it is (--{key}=PATH)"
    root, val, train = oc20.groups()
    return (
        f"dens data download --task s2ef --split {val or train} --ref-energy --num-workers 8 "
        f"--data-path {root or '.'}"
    )


def keep_wandb_offline(config: Mapping[str, Any]) -> None:
    """Switch W&B to offline if the run logs to it without a chosen mode or a login.

    W&B would ask for a key, or end the run where it cannot ask.
    """
    logger = config.get("logger", "wandb")
    name = logger["name"] if isinstance(logger, Mapping) else logger
    if name not in ("wandb", "wandb_singleton") or config["is_debug"] or _wandb_is_set_up():
        return
    os.environ["WANDB_MODE"] = "offline"  # the ranks of this run inherit it
    folder = Path(config["run_dir"], "logs", name, config["timestamp_id"], "wandb", "offline-run-*")
    logging.info(f"Nobody is logged in to W&B: this run stays offline. Later: wandb sync {folder}")


def _wandb_is_set_up() -> bool:
    """Tell whether a mode was chosen or a key is stored, without network or questions."""
    import wandb
    from requests.utils import get_netrc_auth

    if "WANDB_MODE" in os.environ:
        return True
    settings = wandb.setup().settings  # environment and settings files
    hosts = (settings.base_url, "https://api.wandb.ai")  # the address under which logins were kept
    if (
        settings.mode != "online"
        or settings.api_key
        or getattr(settings, "identity_token_file", None)
        or any(get_netrc_auth(host) for host in hosts)
    ):
        return True
    wandb.teardown()  # forget these settings, so that a change of the environment counts
    return False

"""`dens recipes`: the wheel has all configs, and copies are what the host reads in the clone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.hosts import MAJOR
from helpers.paths import CONFIGS, DOCS, ROOT

from dens import cli
from dens.install.recipes import FOLDER, copy_recipe, find_recipe, list_recipes

FILES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*")
    if path.suffix in (".yml", ".yaml")
)
RECIPES = list_recipes()
OF_HOST = [recipe for recipe in RECIPES if str(recipe.host) == MAJOR]


def read_by_host(path: Path) -> dict:
    """Read a config with the code of the installed fairchem-core; version 2 has it from Hydra."""
    if MAJOR == "1":
        return cli.load("dens.fairchem1.config.read:read_config")(path)
    with cli.load("hydra:initialize_config_dir")(str(path.parent.absolute()), version_base="1.3"):
        config = cli.load("hydra:compose")(config_name=path.name)
    return cli.load("omegaconf:OmegaConf").to_container(config, resolve=False)


def command(*argv: str):
    return CliRunner().invoke(cli.commands, ["recipes", *argv])


def test_the_wheel_has_every_file_and_config(monkeypatch):
    """By setuptools' own list of what it puts into a wheel."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    project = setuptools.Distribution({"script_name": "setup.py"})
    project.parse_config_files(["setup.cfg"])
    build = project.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {str(Path(path).relative_to(build.build_lib)) for path in build.get_outputs(0)}
    here = (path for path in (ROOT / "dens").rglob("*") if path.is_file())
    needed = {str(path.relative_to(ROOT)) for path in here if "__pycache__" not in path.parts}
    needed |= {f"dens/recipes/{name}" for name in FILES}
    assert packed == needed
    assert {"dens/py.typed", "dens/runs/report/page.html"} <= needed
    from dens import __version__

    assert project.metadata.version == __version__


def test_every_config_is_a_recipe_or_part_of_one(tmp_path):
    assert FOLDER.resolve() == CONFIGS.resolve()
    copied = {path for recipe in RECIPES for path in copy_recipe(recipe, tmp_path)}
    assert sorted(str(path.relative_to(tmp_path)) for path in copied) == FILES
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (CONFIGS / name).read_bytes()


@pytest.mark.parametrize("recipe", OF_HOST, ids=lambda recipe: recipe.name)
def test_a_copied_recipe_is_what_the_host_reads_in_the_clone(recipe, tmp_path):
    path, *_ = copy_recipe(recipe, tmp_path)
    config = read_by_host(path)
    assert config == read_by_host(recipe.path)
    trainer = config["trainer"] if MAJOR == "1" else config["runner"]["train_eval_unit"]["_target_"]
    assert recipe.method == next((m for m in ("DeNS", "MoreRed") if m in trainer), "baseline")
    if MAJOR == "1":
        src = config["dataset"]["train"]["src"]
        several = f"{src[0]} and {len(src) - 1} more"
        assert recipe.data == (src if isinstance(src, str) else several)
        titles = {
            "dens.EquiformerV2Backbone": "EquiformerV2",
            "equiformer_v2_backbone": "EquiformerV2",
            "dens.ESCNBackbone": "eSCN",
            "escn_backbone": "eSCN",
            "dens.ESENBackbone": "eSEN",
            "esen_backbone": "eSEN",
        }
        assert recipe.backbone == titles[config["model"]["backbone"]["model"]]
    else:
        assert recipe.data in (config.get("train_src"), f"{config.get('data_root')}/train")


@pytest.mark.parametrize(
    ("name", "method", "backbone", "host", "origin"),
    [
        ("oc20/eqv2_dens", "DeNS", "EquiformerV2", 1, "published"),
        ("oc20/eqv2", "baseline", "EquiformerV2", 1, "published"),
        ("oc20/eqv2_dens_demo.yml", "DeNS", "EquiformerV2", 1, "ours"),
        ("configs/md17/toluene/eqv2_l3.yml", "baseline", "EquiformerV2", 1, "adapted"),
        ("md17/ethanol/eqv2_dens_small", "DeNS", "EquiformerV2", 1, "ours"),
        ("qm9/eqv2_morered", "MoreRed", "EquiformerV2", 1, "ours"),
        ("oc20/escn_dens", "DeNS", "eSCN", 1, "published"),
        ("oc20/escn", "baseline", "eSCN", 1, "published"),
        ("oc20/esen_dens_demo", "DeNS", "eSEN", 1, "ours"),
        ("md17/aspirin/esen_conservative_small", "baseline", "eSEN", 1, "ours"),
        ("fairchem2/esen_direct", "DeNS", "eSEN", 2, "ours"),
        ("fairchem2/uma_finetune_baseline.yaml", "baseline", "uma-s-1p1.pt", 2, "ours"),
    ],
)
def test_descriptions_are_read_off_the_configs(name, method, backbone, host, origin):
    found = find_recipe(name)
    assert (found.method, found.backbone, found.host, found.origin) == (
        method,
        backbone,
        host,
        origin,
    )


def test_the_list_has_a_line_for_each():
    lines = command().output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [recipe.name for recipe in RECIPES]


def test_the_documentation_names_each():
    """In a line with its folder; a baseline has the name of its recipe, without ``dens``."""
    lines = [line for page in DOCS.rglob("*.md") for line in page.read_text().splitlines()]
    for recipe in RECIPES:
        folder = recipe.name.split("/")[0]
        if recipe.method != "baseline":
            named = [line for line in lines if f"{folder}/" in line and recipe.path.name in line]
            assert named, recipe.name


def test_files_that_differ_stay_unless_forced(tmp_path):
    argv = ("copy", "oc20/eqv2_dens", str(tmp_path / "mine"))
    assert command(*argv).output.splitlines() == [
        *(str(tmp_path / f"mine/oc20/{name}.yml") for name in ("eqv2_dens", "eqv2", "base")),
        f"train: fairchem --config {tmp_path / 'mine/oc20/eqv2_dens.yml'}",
    ]
    changed = tmp_path / "mine/oc20/base.yml"
    changed.write_text("mine")
    (tmp_path / "mine/oc20/eqv2.yml").unlink()
    refused = command(*argv)
    assert refused.exit_code
    assert f"{changed}: exists, with other contents" in refused.output
    assert changed.read_text() == "mine"
    assert not (tmp_path / "mine/oc20/eqv2.yml").exists()
    assert "eqv2_dens.yml: there already" in command(*argv, "--force").output
    assert changed.read_bytes() == (CONFIGS / "oc20/base.yml").read_bytes()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("oc20/eqv2_den", "did you mean oc20/eqv2_dens, "),
        ("esen_demo", "did you mean fairchem2/esen_demo"),
        ("oc20/base", "`dens recipes` lists all"),
        ("../setup", "`dens recipes` lists all"),
    ],
)
def test_unknown_names_get_suggestions(name, hint, tmp_path):
    result = command("copy", name, str(tmp_path))
    assert result.exit_code
    (line,) = result.output.splitlines()
    assert re.search(re.escape(f"no recipe '{name}': ") + ".*" + re.escape(hint), line)

"""The README: its examples work, its numbers are those of the results, its links lead somewhere."""

import re

import pytest
import yaml
from helpers.documents import PAGES, apply_diff, code_blocks
from helpers.paths import CONFIGS, DOCS, README
from helpers.trainers import trainer_config, write_dataset

import dens.fairchem1  # before fairchem: it supplies what fairchem imports
from dens.denoising.clean_phases import FEW, SHORT
from dens.denoising.config import parse_config
from dens.fairchem1.config.read import read_config
from dens.fairchem1.config.settle import settle

TEXT = README.read_text(encoding="utf-8")


def test_example_trainer_trains(tmp_path):
    """The ten-line example, defined as written, takes a step of DeNS and one epoch."""
    (example,) = code_blocks((DOCS / "training.md").read_text(encoding="utf-8"), "python")
    assert len(example.splitlines()) <= 10
    namespace = {}
    exec(example, namespace)
    from fairchem.core.common.registry import registry

    trainer_class = registry.get_trainer_class("my_trainer")
    assert issubclass(trainer_class, dens.DeNSMixin)
    config = trainer_config(
        write_dataset(tmp_path / "data"),
        optim={"scheduler": "Null", "max_epochs": 1, "clip_grad_norm": 10.0},
    )
    trainer = trainer_class(**config)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.best_val_metric < 1e9


@pytest.mark.parametrize("name", ["oc20/eqv2.yml", "oc20/eqv2_demo.yml", "oc22/eqv2.yml"])
def test_the_diff_turns_a_stock_config_into_one_with_dens(tmp_path, name):
    _, diff = code_blocks(TEXT, "diff")
    stock = CONFIGS / name
    changed = yaml.safe_load(apply_diff(diff, stock.read_text(encoding="utf-8")))
    changed["includes"] = [str(stock.parent / path) for path in changed.get("includes", [])]
    (tmp_path / "changed.yml").write_text(yaml.safe_dump(changed))
    config = read_config(tmp_path / "changed.yml")
    settle(config)
    assert config["trainer"] == "dens.DeNSTrainer"
    assert set(config["model"]["heads"]) == {"energy", "forces", "noise"}


def test_the_diff_for_fairchem_2_turns_a_baseline_into_its_twin():
    diff, _ = code_blocks(TEXT, "diff")
    for name in ("esen_demo", "esen_direct_baseline", "uma_finetune_baseline"):
        stock = (CONFIGS / "fairchem2" / f"{name}.yaml").read_text(encoding="utf-8")
        changed = yaml.safe_load(apply_diff(diff, stock))["runner"]["train_eval_unit"]
        assert changed.pop("_target_") == "dens.fairchem2.DeNSTrainEvalUnit"
        parse_config(changed.pop("dens"), "dens")
        unchanged = yaml.safe_load(stock)["runner"]["train_eval_unit"]
        del unchanged["_target_"]
        assert changed == unchanged


def test_gains_are_those_of_the_results():
    """Structures, epochs, seeds and differences in per cent, bold where significant."""
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    overview = results.split("<!-- overview -->")[1].split("<!-- /overview -->")[0]
    expected, clean_end = {}, {}
    for row in overview.splitlines()[4:]:  # below the head of the table
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 8:
            study, variant, structures, epochs, arm, seeds, *changes = cells
            name, (made, _, planned) = f"`{study} {variant}`", seeds.split()
            percent = [
                re.sub(r"(\*\*)?.*\], ([+-]\d+ %)(\*\*)?", r"\1\2\3", change) for change in changes
            ]
            is_clean_end = arm == "auto" or (arm == "half" and FEW <= int(epochs) <= SHORT[0])
            if arm == "dens":
                expected[name] = [structures, epochs, made, *percent]
                if int(epochs) < FEW:  # the runs are the baseline's
                    clean_end[name] = ("0 %", made)
            elif is_clean_end and made == planned:
                clean_end.setdefault(name, (percent[0], made))
    rows = re.findall(r"^\| (.*) \| (`\w+ \w+`) \|$", TEXT, re.MULTILINE)
    assert len(rows) >= 5
    for row, name in rows:
        structures, epochs, made, *changes = expected[name]
        change, others = clean_end.get(name, ("-", made))
        seeds = made if others == made else f"{made} ({others})"
        assert row.split(" | ")[1:] == [structures, epochs, seeds, *changes, change], name
    assert any("**+" in row for row, _ in rows)  # a case in which DeNS costs accuracy


def test_the_start_is_near_the_top():
    lines = TEXT.splitlines()
    assert len(lines) <= 130
    assert any("fairchem main.py" in line for line in lines[:35])


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_lead_to_pages_and_sections(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text(encoding="utf-8")), link


def test_pages_that_show_a_part_of_it_find_their_part():
    marker = re.compile(r'^:(?:start-after|end-before): "(.*)"$', re.MULTILINE)
    shown = re.compile(r"^```\{include\} \S*README\.md\n(.*?)^```", re.MULTILINE | re.DOTALL)
    pages = [page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md")]
    markers = [m for page in pages for part in shown.findall(page) for m in marker.findall(part)]
    assert len(markers) >= 10
    assert [m for m in markers if m not in TEXT] == []

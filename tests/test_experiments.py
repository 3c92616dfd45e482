"""Studies: expansion into runs, skipped and resumed runs, tables of results."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong  # the built-in one from Python 3.11
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from helpers.trainers import DENS, MODEL, trainer_config, write_dataset

from experiments import run as runner_module
from experiments.report.results import Results, write_report
from experiments.report.tables import paired_difference
from experiments.study import ROOT, expand, load_study

pytestmark = pytest.mark.slow

STUDIES = sorted((ROOT / "experiments" / "studies").glob("*.yml"))
STEPS = 24


def write_study(folder: Path, **changes) -> Path:
    """Write a study of two seeds of a tiny model; returns its file."""
    src = write_dataset(folder / "data", n=8)
    model = {**MODEL, "backbone": {**MODEL["backbone"], "alpha_drop": 0.1}}
    parts = trainer_config(src, model=model, optim={"batch_size": 2, "max_epochs": STEPS // 4})
    sections = ("model", "outputs", "dataset", "loss_functions", "evaluation_metrics")
    config = {name: parts[name] for name in sections}
    config |= {"trainer": "dens", "optim": {**parts["optimizer"], "checkpoint_every": 1}}
    (folder / "tiny.yml").write_text(yaml.safe_dump(config))
    study = {
        "title": "Tiny",
        "seeds": [0, 1],
        "reference": "dens",
        "arms": {"dens": {"config": str(folder / "tiny.yml")}},
        "variants": {"all": {"tests": {"test": src}}},
        "sigmas": [0.1],
        **changes,
    }
    path = folder / "studies" / "tiny_study.yml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def call(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start the program on the study in `folder`, with runs and results there."""
    places = ["--studies", folder / "studies", "--runs", folder / "runs"]
    places += ["--results", folder / "results", "--out", folder / "docs" / "results.md"]
    command = [sys.executable, "-m", "experiments.run", "tiny_study", *places, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def test_a_stopped_study_goes_on_to_the_same_results(tmp_path):
    """Compare an undisturbed study with one that is stopped in a run and started again."""
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    for folder in (plain, stopped):
        folder.mkdir()
        write_study(folder, seeds=[3])
    undisturbed, first = call(plain), call(stopped)
    log = stopped / "runs/tiny_study/all-dens-seed3/logs/tensorboard/all-dens-seed3/metrics.jsonl"
    while first.poll() is None and not (log.exists() and log.read_text().count("train") >= 3):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGTERM)
    assert "the same command goes on" in first.communicate(timeout=60)[0]
    assert first.returncode == 1
    assert not (stopped / "results").exists()

    second = call(stopped)
    for process in (undisturbed, second):
        assert process.wait(timeout=120) == 0, process.stdout.read()
    a, b = (
        json.loads((f / "results/tiny_study/all-dens-seed3.json").read_text())
        for f in (plain, stopped)
    )
    assert (a["starts"], b["starts"]) == (1, 2)
    assert a["steps"] == b["steps"] == STEPS
    for key in ("errors", "denoising", "validation", "parameters"):
        assert a[key] == b[key], key
    assert set(a["errors"]) == {"best", "final"}
    assert a["errors"]["best"]["test"]["forces_mae"] > 0
    # the test set is the validation set here, and the best checkpoint was chosen on it
    assert a["errors"]["best"]["val"]["forces_mae"] == pytest.approx(
        min(forces for _, forces, _ in a["validation"]), rel=1e-4
    )
    assert a["errors"]["best"]["val"] == a["errors"]["best"]["test"]
    assert call(stopped, "--report").wait(timeout=60) == 0
    text = (stopped / "docs" / "results.md").read_text()
    assert f"{1000 * a['errors']['final']['test']['forces_mae']:.1f}" in text
    assert (stopped / "docs" / "results" / "tiny_study.png").stat().st_size > 1000


def test_a_run_that_another_process_trains_fails_by_name(tmp_path):
    write_study(tmp_path, seeds=[3])
    folder = tmp_path / "runs" / "tiny_study" / "all-dens-seed3"
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = call(tmp_path)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "all-dens-seed3 failed" in output
    assert f"another process is at work in {folder}" in output
    assert not (tmp_path / "results").exists()


def finished(run) -> dict:
    """Make a result like that of a finished run; forces depend on arm and seed."""
    forces = {"reference": 0.1, "other": 0.07}[run.arm] + 0.001 * run.seed**2
    forces += 0.001 * run.seed * (run.arm == "other")
    errors = {"forces_mae": forces, "energy_mae": 2 * forces}
    return {
        **{key: getattr(run, key) for key in ("variant", "arm", "seed", "fingerprint")},
        "errors": {weights: {"val": errors, "test": errors} for weights in ("best", "final")},
        "denoising": {},
        "validation": [[1, 0.2, 0.4], [2, forces, 0.3]],
        "steps": 2,
        "parameters": 1000,
        "cpu_s": 60.0 + 6 * (run.arm == "other"),
        "starts": 1,
        "commit": "abc",
        "host": {"cpu": "a CPU", "cores": 2, "gpu": None, "torch": "2.4"},
    }


@pytest.fixture
def two_arms(tmp_path, request):
    """Make a study of two arms and three seeds, and functions that call it and keep results."""
    arms = {name: {"config": str(tmp_path / "tiny.yml")} for name in ("reference", "other")}
    arms["other"]["settings"] = {"optim": {"dens": {"sigma": 0.3}}}
    changes = getattr(request, "param", {})
    path = write_study(tmp_path, arms=arms, reference="reference", seeds=[0, 1, 2], **changes)
    runs = expand("tiny_study", load_study(path))
    (tmp_path / "results" / "tiny_study").mkdir(parents=True)

    def invoke(*arguments: str):
        places = ["--studies", tmp_path / "studies", "--runs", tmp_path / "runs"]
        places += ["--results", tmp_path / "results", "--out", tmp_path / "docs" / "r.md"]
        words = map(str, ["tiny_study", *places, *arguments])
        return CliRunner().invoke(runner_module.main, [*words])

    def keep(run) -> None:
        file = tmp_path / "results" / "tiny_study" / f"{run.name}.json"
        file.write_text(json.dumps(finished(run)))

    return runs, invoke, keep, tmp_path


def test_runs_are_configs_times_overrides_times_seeds(two_arms):
    runs, invoke, keep, _ = two_arms
    assert [run.name for run in runs] == [
        f"all-{arm}-seed{seed}" for seed in (0, 1, 2) for arm in ("reference", "other")
    ]
    assert runs[0].config["optim"]["dens"] == DENS
    assert runs[1].config["optim"]["dens"] == {**DENS, "sigma": 0.3}
    assert all(run.config["optim"]["num_workers"] == 0 for run in runs)
    assert len({run.fingerprint for run in runs}) == 6
    keep(runs[3])
    assert invoke("--list").output.splitlines()[3] == "done   all-other-seed1"


def test_a_variant_has_seeds_of_its_own(tmp_path):
    variants = {"all": {"tests": {"test": "x"}}, "few": {"tests": {"test": "x"}, "seeds": [1, 5]}}
    arms = {"reference": {"config": str(tmp_path / "tiny.yml")}}
    path = write_study(tmp_path, arms=arms, reference="reference", seeds=[0, 1], variants=variants)
    study = load_study(path)
    names = [run.name for run in expand(path.stem, study)]
    both = ["all-reference-seed1", "few-reference-seed1"]
    assert names == ["all-reference-seed0", *both, "few-reference-seed5"]
    results = [{"variant": "few", "arm": "reference", "seed": seed} for seed in (0, 1)]
    found = Results(study, results)
    assert list(found.of("few", "reference")) == [1]
    assert found.missing() == [*names[:2], "few-reference-seed5"]


def test_an_arm_has_some_of_the_seeds(two_arms):
    _, invoke, _, folder = two_arms
    path = folder / "studies" / "tiny_study.yml"
    text = yaml.safe_load(path.read_text())
    text["arms"]["other"]["seeds"] = [2, 5]
    path.write_text(yaml.safe_dump(text))
    study = load_study(path)
    names = [run.name for run in expand(path.stem, study)]
    assert names[:2] == ["all-reference-seed0", "all-reference-seed1"]
    assert sorted(names[2:]) == ["all-other-seed2", "all-reference-seed2"]
    assert sorted(Results(study, []).missing()) == sorted(names)

    text["arms"]["other"]["seeds"] = [5]
    path.write_text(yaml.safe_dump(text))
    refused = invoke("--list")
    assert refused.exit_code == 1
    assert "arms.other.seeds must have some of all's, got [5]" in refused.output
    text["arms"] |= {"reference": {**text["arms"]["reference"], "seeds": [0]}}
    del text["arms"]["other"]["seeds"]
    path.write_text(yaml.safe_dump(text))
    assert "'reference' must be run for all variants and their seeds" in invoke("--list").output


def test_finished_runs_are_skipped_and_results_of_other_settings_refused(two_arms, monkeypatch):
    runs, invoke, keep, folder = two_arms
    begun = []
    monkeypatch.setattr(runner_module.Runner, "finish", lambda _, run: begun.append(run.name))
    for run in runs[:4]:
        keep(run)
    assert invoke().exit_code == 0
    assert sorted(begun) == ["all-other-seed2", "all-reference-seed2"]
    assert invoke("--only", "*-other-*").exit_code == 0
    assert begun[2:] == ["all-other-seed2"]

    study = yaml.safe_load((folder / "studies" / "tiny_study.yml").read_text())
    study["arms"]["other"]["settings"]["optim"]["dens"]["sigma"] = 0.2
    (folder / "studies" / "tiny_study.yml").write_text(yaml.safe_dump(study))
    refused = invoke()
    assert refused.exit_code == 1
    assert "all-other-seed0.json was made with other settings" in refused.output


def test_a_run_that_another_study_has_made_is_taken_from_there(two_arms):
    runs, invoke, keep, folder = two_arms
    for run in runs[:5]:
        keep(run)
    other = folder / "results" / "other_study"
    other.mkdir()
    made = {**finished(runs[5]), "study": "other_study", "arm": "another"}
    (other / "all-another-seed2.json").write_text(json.dumps(made))
    done = invoke()
    assert done.exit_code == 0, done.output
    assert "all-other-seed2: the same as all-another-seed2 of other_study" in done.output
    taken = json.loads((folder / "results" / "tiny_study" / "all-other-seed2.json").read_text())
    assert taken == {**finished(runs[5]), "study": "tiny_study"}
    assert not (folder / "runs").exists()


def test_what_does_not_start_leaves_nothing(two_arms):
    runs, _, _, folder = two_arms
    runner = runner_module.Runner(folder / "runs", folder / "results")
    begun = folder / "runs" / runs[0].name
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "fingerprint").write_text("another")
    with pytest.raises(click.ClickException, match="was made with other settings"):
        runner.finish(runs[0])
    assert not (begun / "config.yml").exists()

    runner.stop()
    runner.finish(runs[1])
    assert not (folder / "runs" / runs[1].name).exists()


def test_table(two_arms):
    """Means and intervals computed by hand: errors 100, 101, 104 against 70, 72, 76 meV/Å."""
    runs, invoke, keep, folder = two_arms
    for run in runs[:5]:
        keep(run)
    assert invoke("--report").exit_code == 0
    text = (folder / "docs" / "r.md").read_text()
    assert "**Missing** (1): all-other-seed2." in text
    assert "| all | test | reference | 3 of 3 | 101.7 ± 2.1 |" in text
    # differences -30 and -29: -29.5 ± 12.706 * 0.7071 / sqrt(2)
    assert "2 of 3 | 71.0 ± 1.4 | -29.5 [-35.9 to -23.1], -29 %" in text

    (folder / "docs" / "r.md").write_text(f"Before.\n\n{text}\nAfter.\n")
    keep(runs[5])
    assert invoke("--report").exit_code == 0
    text = (folder / "docs" / "r.md").read_text()
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert text.count("<!-- study tiny_study -->") == 1
    assert "Missing" not in text
    # differences -30, -29, -28: -29 ± 4.303 / sqrt(3)
    assert "3 of 3 | 72.7 ± 3.1 | -29.0 [-31.5 to -26.5], -29 %" in text
    assert "| all | other | 2 | 1,000 | 1.1 ± 0.0 | 1.10 | 0 |" in text


@pytest.mark.parametrize("two_arms", [{"variants": {"all": {}}}], indirect=True)
def test_a_search_for_settings_is_judged_by_the_validation_set(two_arms):
    runs, invoke, keep, folder = two_arms
    assert all(run.tests == {} for run in runs)
    for run in runs:
        keep(run)
    assert invoke("--report").exit_code == 0
    text = (folder / "docs" / "r.md").read_text()
    assert "| all | val | reference | 3 of 3 | 101.7 ± 2.1 |" in text


def test_an_arm_of_some_variants(tmp_path):
    tests = {"test": "x"}
    arms = {name: {"config": str(tmp_path / "tiny.yml")} for name in ("reference", "other")}
    arms["other"]["variants"] = ["few"]
    variants = {"few": {"tests": tests}, "many": {"tests": tests}}
    path = write_study(tmp_path, arms=arms, reference="reference", seeds=[0], variants=variants)
    study = load_study(path)
    names = [f"{place}-seed0" for place in ("few-reference", "few-other", "many-reference")]
    runs = expand("tiny_study", study)
    assert [run.name for run in runs] == names
    write_report("tiny_study", study, [finished(run) for run in runs[:2]], tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert "**Missing** (1): many-reference-seed0." in text
    assert "| few | test | other | 1 of 1 | 70.0 | -30.0 [one seed], -30 % |" in text
    assert "| many |" not in text


OVERVIEW = {"overview": ["other"], "variants": {"all": {"structures": 8, "tests": {"test": "x"}}}}


@pytest.mark.parametrize("two_arms", [OVERVIEW], indirect=True)
def test_table_over_all_studies(two_arms):
    """Bold if the interval excludes zero; numbers as in `test_table`."""
    runs, invoke, keep, folder = two_arms
    pages = []
    for done in (runs[:1], runs[:2], runs[:5]):
        for run in done:
            keep(run)
        assert invoke("--report").exit_code == 0
        pages.append((folder / "docs" / "r.md").read_text())
    assert "<!-- overview -->" not in pages[0]
    place = f"| tiny_study | all | 8 | {STEPS // 4} | other |"
    assert f"{place} 1 of 3 | -30.0 [one seed], -30 % |" in pages[1]
    assert f"{place} 2 of 3 | **-29.5 [-35.9 to -23.1], -29 %** |" in pages[2]
    assert pages[2].count("tiny_study | all") == 1


def test_paired_difference():
    """Only common seeds count; the quantile for two degrees of freedom is 4.3027."""
    ours, theirs = {0: 1.0, 1: 2.0, 2: 6.0, 7: 100.0}, {0: 2.0, 1: 2.0, 2: 4.0, 9: -100.0}
    mean, half = paired_difference(ours, theirs)
    assert mean == pytest.approx(1 / 3)
    assert half == pytest.approx(4.30265 * np.sqrt(7 / 3) / np.sqrt(3), rel=1e-5)
    assert paired_difference({0: 3.0}, {0: 1.0})[0] == 2.0
    assert np.isnan(paired_difference({0: 3.0}, {0: 1.0})[1])
    assert np.isnan(paired_difference({0: 3.0}, {1: 1.0})[0])


def _arm_of(*variants: str) -> dict:
    return {"arms": {"dens": {"config": "tiny.yml", "variants": [*variants]}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "none"}, "reference must be one of the arms"),
        ({"seeds": [1, 1]}, "seeds must differ, got [1, 1]"),
        ({"seeds": []}, "seeds: List should have at least 1 item"),
        ({"variants": {"all": {"seeds": [2, 2]}}}, "seeds must differ, got [2, 2]"),
        ({"sgima": 0.1}, "sgima: Extra inputs are not permitted, got 0.1"),
        ({"variants": {"a-b": {"tests": {"t": "x"}}}}, "must be identifiers, got 'a-b'"),
        ({"arms": {"dens": {}}}, "arms.dens.config: Field required"),
        (_arm_of("none"), "arms.dens.variants must be of ['all'], got ['none']"),
        (_arm_of(), "arms.dens.variants: List should have at least 1 item"),
        (_arm_of("all"), "reference 'dens' must be run for all variants"),
        ({"overview": ["none"]}, "overview must be some of the arms ['dens']"),
        ({"overview": ["dens"]}, "variants.all.structures is missing: overview needs it"),
    ],
)
def test_wrong_study_files(tmp_path, change, message):
    path = write_study(tmp_path, **change)
    with pytest.raises(click.ClickException) as error:
        load_study(path)
    assert str(path) in error.value.message
    assert message in error.value.message


def test_a_config_of_another_trainer(tmp_path):
    """It would train, and then have no log and no noise to measure."""
    study = load_study(write_study(tmp_path))
    config = tmp_path / "tiny.yml"
    config.write_text(config.read_text().replace("trainer: dens", "trainer: equiformerv2_forces"))
    message = "arms.dens: trainer must be one of .*, got 'equiformerv2_forces' in .*tiny.yml"
    with pytest.raises(click.ClickException, match=message):
        expand("tiny_study", study)


def test_keys_that_no_run_takes_from_its_config(tmp_path):
    """A recipe may get a setting that the runs of a study were recorded without."""
    arms = {"dens": {"config": str(tmp_path / "tiny.yml")}}
    arms["higher"] = {**arms["dens"], "settings": {"optim": {"dens": {"sigma": 0.3}}}}
    path = write_study(tmp_path, arms=arms, seeds=[0], without=["optim.dens.sigma"])
    dens, higher = expand("tiny_study", load_study(path))
    assert dens.config["optim"]["dens"] == {k: v for k, v in DENS.items() if k != "sigma"}
    assert higher.config["optim"]["dens"] == {**DENS, "sigma": 0.3}
    path.write_text(path.read_text().replace("dens.sigma", "dens.none"))
    with pytest.raises(click.ClickException, match=r"tiny.yml has no key optim.dens.none"):
        expand("tiny_study", load_study(path))


def test_data_that_another_process_makes_is_waited_for(tmp_path, monkeypatch):
    """Two commands for one study at once: the second finds what the first has made."""
    monkeypatch.setattr(runner_module, "ROOT", tmp_path)
    study = load_study(write_study(tmp_path, data={"data/slabs": "experiments.none"}))
    with pytest.raises(click.ClickException, match=r"data/slabs: .* ended with 1"):
        runner_module.prepare_data(study, None)
    with ThreadPoolExecutor(1) as pool:
        with open(tmp_path / "data" / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            second = pool.submit(runner_module.prepare_data, study, None)
            with pytest.raises(TooLong):
                second.result(timeout=1)
            (tmp_path / "data" / "slabs").mkdir()
        second.result()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies(path, tmp_path):
    """They expand, their results have the current settings, and the page shows them."""
    study, page = load_study(path), (ROOT / "docs" / "results.md").read_text()
    (tmp_path / "results.md").write_text(page)
    words = [path.stem, "--report", "--out", str(tmp_path / "results.md")]
    assert CliRunner().invoke(runner_module.main, words).exit_code == 0
    assert (tmp_path / "results.md").read_text() == page

    runner = runner_module.Runner(ROOT / "runs", ROOT / "experiments" / "results" / path.stem)
    for run in expand(path.stem, study):
        result = runner.result(run)
        if run.host == 2:
            assert not result or result["steps"] == run.config["steps"]
            continue
        assert run.config["dataset"]["train"]["src"]
        structures, optim = study.variants[run.variant].structures, run.config["optim"]
        if structures and result:
            batches = -(-structures // optim["batch_size"])
            assert result["steps"] == batches * optim["max_epochs"]

"""The report: rendered in a browser, and compared with the runs on disk."""

from __future__ import annotations

import math
import re
import shlex
import shutil

import numpy as np
import pytest
import yaml
from helpers.paths import DOCS
from PIL import Image

from dens import cli
from dens.runs.figure_data import DenoisedStructure, FigureData
from dens.runs.figures import draw_all
from dens.runs.history import History
from dens.runs.report.runs import config_diff, load_runs
from dens.runs.report.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def write_run(folder, *, dens: bool, steps: int = 40):
    """Write a run whose validation force MAE ends at 0.4 (baseline) or 0.3 (DeNS)."""
    history = History(folder / "metrics.jsonl")
    for step in range(1, steps + 1):
        train = {"loss": 10 / step, "forces_mae": 1 / step, "lr": 1e-3, "epoch": step / 10}
        if dens:
            train |= {"gradient_share_forces": 0.75, "gradient_share_noise": 0.25}
        history.add(train, step, "train")
        history.add({"atoms_per_second": 100.0 + step}, step, "system")
        if step % 10 == 0:
            val = {"forces_mae": (0.3 if dens else 0.4) * steps / step, "energy_mae": math.nan}
            if dens:
                val |= {"denoising_pos_mae/sigma=0.10": 0.05}
                val |= {"denoising_pos_explained_variance/sigma=0.10": 0.5}
                val |= {"denoising_pos_explained_variance/sigma=0.10/no_forces": 0.25}
            history.add(val, step, "val")
    config = {"trainer": "ocp", "optim": {"batch_size": 8}, "cmd": {"seed": 0}}
    if dens:
        config["optim"]["dens"] = {"prob": 0.5, "note": "</script><b>"}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    if dens:
        (folder / "figures/val-00000040").mkdir(parents=True)
        data = figure_data()
        data.save(folder / "figures/val-00000040/data.npz")
        for name, figure in draw_all(data).items():
            figure.savefig(folder / f"figures/val-00000040/{name}.png")
    return folder


def figure_data(n: int = 60, k: int = 2) -> FigureData:
    rng = np.random.default_rng(0)
    noise, forces = rng.normal(scale=0.1, size=(n, 3)), rng.normal(size=(n, 3))
    pos = 6 * rng.random((5, 3))
    structure = DenoisedStructure(
        np.array([29, 29, 8, 6, 1]), 6 * np.eye(3), pos, pos + noise[:5], pos + 0.01
    )
    return FigureData(
        sigma=0.1,
        noise=noise,
        noise_pred=0.8 * noise,
        noise_force_norm=np.linalg.norm(forces, axis=1),
        forces=forces,
        forces_pred=0.9 * forces,
        forces_numbers=rng.choice([1, 8, 29], size=n),
        sigmas=np.linspace(0.1, 0.2, k),
        noise_mae=np.linspace(0.03, 0.05, k),
        noise_mae_hidden=np.linspace(0.04, 0.06, k),
        structures=[structure],
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    for name in ("baseline", "dens"):
        write_run(folder / "logs/wandb" / name, dens=name == "dens")
    return folder


@pytest.fixture
def report(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return write_report(["baseline", runs / "logs/wandb/dens"], runs / "out.html")


def test_a_browser_shows_curves_table_and_figures_without_network(report):
    """Opened as a file, the page fetches nothing and logs no error."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    said, fetched = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(report[0].as_uri(), timeout=120_000)  # ms; other tests share the cores
        page.wait_for_selector("[data-panels] .panel .scatterlayer .trace")
        curves = page.locator(".scatterlayer .trace").count()
        panels = page.locator(".panel").count()
        row = page.locator("#results tbody tr").first.inner_text()
        settings = page.locator("#settings tbody").inner_text()
        loaded = page.evaluate("[...document.images].every(i => i.naturalWidth > 100)")
        pictures = page.locator("figure img").count()
        page.locator("#log").check()
        axis = page.evaluate("document.querySelector('.panel').layout.yaxis.type")
        page.locator("#train").uncheck()
        page.wait_for_function(
            "document.querySelector('.panel').querySelectorAll('.scatterlayer .trace').length == 2"
        )
        browser.close()
    assert said == []
    assert [url for url in fetched if not url.startswith("data:")] == [report[0].as_uri()]
    # forces 4, energy 2, noise MAE 1, variance 2, loss 2, lr 2, shares 2, speed 2
    assert (panels, curves) == (9, 17)
    assert " ".join(row.split()) == "force MAE (eV/Å) val 0.4 (40) 0.4 0.3 (40) 0.3 -25.0 %"
    assert "optim.dens.prob\t\t0.5" in settings
    assert "</script><b>" in settings
    assert loaded
    assert pictures == 6
    assert axis == "log"


def test_pngs_are_written_beside_the_page(report):
    page, *pngs = report
    assert {png.stem for png in pngs} >= {"overview", "s2ef", "denoising", "dens-noise_parity"}
    assert {png.parent.name for png in pngs} == {"out_files"}
    for png in pngs:
        with Image.open(png) as image:
            assert min(image.size) > 200
    assert "NaN" not in re.sub(
        r"(?s)<script>.*?</script>", "", page.read_text().split("Results")[0]
    )


def test_one_run_needs_no_figures_and_has_no_differences(runs, tmp_path):
    page, *pngs = write_report([runs / "logs/wandb/baseline"], tmp_path / "one.html")
    assert 'id="settings"' not in page.read_text()
    assert "denoising" not in {png.stem for png in pngs}


def test_differing_settings_are_listed(runs):
    loaded = load_runs([runs / "logs/wandb/baseline", runs / "logs/wandb/dens"])
    assert config_diff(loaded) == [
        ("optim.dens.note", ["", "</script><b>"]),
        ("optim.dens.prob", ["", "0.5"]),
    ]


def test_figure_data_are_saved_and_loaded(tmp_path):
    data = figure_data()
    data.save(tmp_path / "data.npz")
    back = FigureData.load(tmp_path / "data.npz")
    assert back.sigma == 0.1
    np.testing.assert_array_equal(back.forces_pred, data.forces_pred)
    np.testing.assert_array_equal(back.structures[0].denoised, data.structures[0].denoised)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_figures_of_few_atoms(n):
    whole = figure_data()
    parts = {"noise", "noise_pred", "noise_force_norm", "forces", "forces_pred", "forces_numbers"}
    few = {name: getattr(whole, name)[:n] for name in parts}
    figures = draw_all(FigureData(**{**vars(whole), **few, "structures": []}))
    assert len(figures) == (5 if n else 0)
    for figure in figures.values():
        figure.canvas.draw()


def test_the_documented_command_writes_the_report(runs, monkeypatch, capsys):
    (typed,) = re.findall(
        r"^dens (report [^#\n]*)", (DOCS / "monitoring.md").read_text(), re.MULTILINE
    )
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit) as exit_:
        cli.main(shlex.split(typed))
    assert not exit_.value.code
    written = capsys.readouterr().out.split()
    assert written[:2] == ["report.html", "report_files/overview.png"]
    assert all((runs / path).is_file() for path in written)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], "RUN must be a log folder with metrics.jsonl, or the id of a run in ./logs"),
        (["nothing"], "got 'nothing'; runs in ./logs: baseline, dens"),
        (["dens", "logs/wandb/dens"], "dens is given twice"),
        (["empty"], "metrics.jsonl is empty: nothing has been logged yet"),
    ],
)
def test_an_invalid_run_is_one_clear_line(names, message, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir(exist_ok=True)
    (runs / "empty/metrics.jsonl").touch()
    with pytest.raises(SystemExit) as exit_:
        cli.main(["report", *names, "--out", "no.html"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (runs / "no.html").exists()


def test_without_plotly_the_extra_is_named(runs, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(SystemExit):
        cli.main(["report", str(runs / "logs/wandb/dens"), "--out", str(runs / "no.html")])
    assert "pip install 'fairchem-dens[report]'" in capsys.readouterr().err

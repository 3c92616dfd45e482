"""Make a W&B workspace for DeNS runs: panels by subject, and the baseline beside DeNS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from dens.denoising.metrics import VALIDATED, denoising_metric_names
from dens.metrics import ENERGY_MAE, FORCES_MAE, GRADIENT_SHARE, LOSS_TERM, METRICS, level_pattern

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

_FIGURES = {
    "Parity": ["noise_parity", "forces_parity"],
    "Errors": ["error_by_sigma", "error_by_force", "forces_by_element"],
    "Structures": ["structure_0", "structure_1"],
    "Structures in 3D": [f"structure_0_{s}" for s in ("original", "corrupted", "denoised")],
}


@click.command("dashboard")
@click.option("--entity", required=True, help="User or team of W&B.")
@click.option("--project", required=True, help="Project of that user or team.")
@click.option("--name", default="DeNS", show_default=True, help="Name of the saved view.")
@click.option("--baseline", help="Id of the run with which others are compared.")
@click.option("--dry-run", is_flag=True, help="Print what would be saved; contact no server.")
def dashboard_command(
    entity: str, project: str, name: str, baseline: str | None, dry_run: bool
) -> None:
    """Save a W&B workspace for runs."""
    workspace = make_workspace(entity, project, name, baseline)
    click.echo(as_json(workspace) if dry_run else save_workspace(workspace))


def make_workspace(
    entity: str, project: str, name: str = "DeNS", baseline: str | None = None
) -> Workspace:
    """Make the workspace without saving it or asking a server.

    Args:
        entity: user or team.
        project: their project.
        name: the name of the saved view.
        baseline: id of the run that W&B compares the others with.

    Raises:
        ValueError: wandb-workspaces is missing, or refuses a name.
    """
    ws, wr = _library()
    sections = []
    for subject, panels in _panels(wr).items():
        layout = ws.SectionLayoutSettings(columns=3, rows=-(-len(panels) // 3))
        section = ws.Section(name=subject, panels=panels, is_open=True, layout_settings=layout)
        sections.append(section)
    columns = [f"summary:val/{metric}.min" for metric in (FORCES_MAE, ENERGY_MAE)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="Step", max_runs=20),
        runset_settings=ws.RunsetSettings(
            pinned_columns=["config:method", *columns], baseline_run=baseline
        ),
    )


def as_json(workspace: Workspace) -> str:
    """Render the JSON that saving would send, validated by the library's own model of it."""
    view = workspace._to_model()
    sent = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    type(view).model_validate(sent)
    return json.dumps(sent, indent=2)


def save_workspace(workspace: Workspace) -> str:
    """Save the workspace with W&B, which needs a login, and return its address."""
    workspace.save()
    return workspace.url


def _library() -> tuple[Any, Any]:
    """Import the modules for workspaces and for panels."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ValueError(
            "dens dashboard needs wandb-workspaces: pip install 'fairchem-dens[dashboard]'"
        ) from error
    return ws, wr


def _panels(wr: Any) -> dict[str, list[Any]]:
    """Make the panels of each section."""

    def line(name: str, split: str, **more: Any) -> Any:
        return wr.LinePlot(title=f"{_title(name)}, {split}", y=[f"{split}/{name}"], **more)

    def lines(title: str, pattern: str, **more: Any) -> Any:
        return wr.LinePlot(title=title, metric_regex=pattern, **more)

    def level(name: str, hidden: bool) -> Any:
        title = f"{_title(name)}, val" + ", forces hidden" * hidden
        return lines(title, f"val/{level_pattern(name, forces_hidden=hidden)}$")

    s2ef = (FORCES_MAE, ENERGY_MAE, "forces_cosine_similarity")
    return {
        "Baseline against DeNS": _comparison(wr),
        "S2EF": [line(name, split) for name in s2ef for split in ("val", "train")],
        "Denoising": [
            *(level(name, hidden) for name in VALIDATED for hidden in (False, True)),
            *(line(name, "train") for name in denoising_metric_names()),
        ],
        "Figures": _figures(wr),
        "Optimisation": [
            wr.LinePlot(title="Loss", y=["train/loss", "val/loss"], log_y=True),
            lines("Loss terms, weighted", f"train/{LOSS_TERM}.*", log_y=True),
            lines("Share of the gradient", f"train/{GRADIENT_SHARE}.*"),
            line("grad_norm", "train", log_y=True),
            *(line(name, "train") for name in ("lr", "skipped_steps", "corrupted_fraction")),
        ],
        "System": [line(m.name, "system") for m in METRICS.values() if m.group == "System"],
    }


def _figures(wr: Any) -> list[Any]:
    return [
        wr.MediaBrowser(
            title=title,
            media_keys=[f"val/figures/{name}" for name in names],
            num_columns=len(names),
            mode="gallery",
            gallery_axis="step",
        )
        for title, names in _FIGURES.items()
    ]


def _comparison(wr: Any) -> list[Any]:
    """Make panels that compare baseline and DeNS, each as the mean of its runs with the spread."""
    grouped = {
        "groupby": wr.Config("method"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    panels = []
    for name in (FORCES_MAE, ENERGY_MAE):
        curve, best = f"Validation {METRICS[name].label}", f"Least validation {METRICS[name].label}"
        panels.append(wr.LinePlot(title=curve, y=[f"val/{name}"], **grouped))
        panels.append(wr.BarPlot(title=best, metrics=[f"val/{name}.min"], orientation="h"))
    return [*panels, wr.RunComparer(diff_only="split")]


def _title(name: str) -> str:
    label = METRICS[name].label
    return label[0].upper() + label[1:]

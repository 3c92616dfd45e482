"""A saved W&B workspace for DeNS runs: panels by subject, and the baseline beside DeNS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

_LEVEL = r"sigma=[0-9.]+"
_METHOD = "config:method"


def make_workspace(
    entity: str, project: str, name: str = "DeNS", baseline: str | None = None
) -> Workspace:
    """The workspace, not yet saved; asks no server.

    Args:
        entity: user or team.
        project: their project.
        name: of the saved view.
        baseline: id of the run that W&B shows the others' differences to.

    Raises:
        ValueError: wandb-workspaces is missing; a name that it refuses.
    """
    ws = _library().workspaces
    columns = ["forces_mae.min", "energy_mae.min"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(),
        settings=ws.WorkspaceSettings(x_axis="Step", max_runs=20),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[_METHOD, *(f"summary:val/{column}" for column in columns)],
            baseline_run=baseline,
        ),
    )


def as_json(workspace: Workspace) -> str:
    """What saving would send, checked by the library's own model of it."""
    view = workspace._to_model()
    sent = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    type(view).model_validate(sent)
    return json.dumps(sent, indent=2)


def save_workspace(workspace: Workspace) -> str:
    """Save it with W&B; needs a login. Returns its address."""
    workspace.save()
    return workspace.url


def _library() -> Any:
    try:
        import wandb_workspaces
        import wandb_workspaces.reports.v2
        import wandb_workspaces.workspaces
    except ImportError as error:
        raise ValueError(
            "dens dashboard needs wandb-workspaces: pip install 'fairchem-dens[dashboard]'"
        ) from error
    return wandb_workspaces


def _sections() -> list[Section]:
    return [
        _section("Baseline against DeNS", _comparison()),
        _section("S2EF", _s2ef()),
        _section("Denoising", _denoising()),
        _section("Figures", _figures()),
        _section("Optimisation", _optimisation()),
        _section("System", _system()),
    ]


def _section(name: str, panels: list[Any]) -> Section:
    ws = _library().workspaces
    layout = ws.SectionLayoutSettings(columns=3, rows=-(-len(panels) // 3))
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)


def _line(title: str, *metrics: str, regex: str | None = None, **more: Any) -> Any:
    """A line plot of metrics, or of all that match ``regex``."""
    wr = _library().reports.v2
    if regex is not None:
        return wr.LinePlot(title=title, metric_regex=regex, **more)
    return wr.LinePlot(title=title, y=list(metrics), **more)


def _comparison() -> list[Any]:
    """All runs of a method, baseline or DeNS, are one curve: their mean, with its spread."""
    wr = _library().reports.v2
    grouped = {
        "groupby": wr.Config("method"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    return [
        _line("Validation force MAE (eV/Å)", "val/forces_mae", **grouped),
        _line("Validation energy MAE (eV)", "val/energy_mae", **grouped),
        wr.BarPlot(
            title="Least validation force MAE (eV/Å)",
            metrics=["val/forces_mae.min"],
            orientation="h",
        ),
        wr.BarPlot(
            title="Least validation energy MAE (eV)",
            metrics=["val/energy_mae.min"],
            orientation="h",
        ),
        wr.RunComparer(diff_only="split"),
    ]


def _s2ef() -> list[Any]:
    names = {
        "forces_mae": "Force MAE (eV/Å)",
        "energy_mae": "Energy MAE (eV)",
        "forces_cosine_similarity": "Force cosine similarity",
    }
    return [
        _line(f"{title}, {split}", f"{split}/{metric}")
        for metric, title in names.items()
        for split in ("val", "train")
    ]


def _denoising() -> list[Any]:
    names = {
        "pos_mae": "Noise MAE (Å)",
        "pos_explained_variance": "Noise variance explained",
        "pos_cosine": "Noise cosine similarity",
        "energy_mae": "Energy MAE, corrupted structures (eV)",
    }
    validation = [
        _line(f"{title}, val{words}", regex=f"val/denoising_{metric}/{_LEVEL}{end}$")
        for metric, title in names.items()
        for end, words in (("", ""), ("/no_forces", ", forces hidden"))
    ]
    training = {
        "pos_mae": "Noise MAE (Å), train",
        "forces_mae": "Force MAE beside corrupted atoms (eV/Å), train",
        "energy_mae": "Energy MAE, corrupted structures (eV), train",
    }
    return validation + [_line(t, f"train/denoising_{m}") for m, t in training.items()]


def _figures() -> list[Any]:
    wr = _library().reports.v2
    shown = {
        "Parity": ["noise_parity", "forces_parity"],
        "Errors": ["error_by_sigma", "error_by_force", "forces_by_element"],
        "Structures": ["structure_0", "structure_1"],
        "Structures in 3D": [f"structure_0_{s}" for s in ("original", "corrupted", "denoised")],
    }
    return [
        wr.MediaBrowser(
            title=title,
            media_keys=[f"val/figures/{name}" for name in names],
            num_columns=len(names),
            mode="gallery",
            gallery_axis="step",
        )
        for title, names in shown.items()
    ]


def _optimisation() -> list[Any]:
    return [
        _line("Loss", "train/loss", "val/loss", log_y=True),
        _line("Loss terms, weighted", regex="train/loss_.*", log_y=True),
        _line("Share of the gradient", regex="train/gradient_share_.*"),
        _line("Gradient norm", "train/grad_norm", log_y=True),
        _line("Learning rate", "train/lr"),
        _line("Skipped steps", "train/skipped_steps"),
        _line("Corrupted fraction", "train/corrupted_fraction"),
    ]


def _system() -> list[Any]:
    return [
        _line("Structures per second", "system/structures_per_second"),
        _line("Atoms per second", "system/atoms_per_second"),
        _line("GPU memory, peak (GiB)", "system/gpu_memory_gib"),
    ]

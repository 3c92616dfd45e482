"""The commands ``dens evaluate`` and ``dens export``, which only fairchem-core 1.10 has."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command("evaluate", context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=_PATH, help="Training config.")
@click.option("--checkpoint", required=True, type=_PATH, help="Its weights.")
@click.option(
    "--split",
    default="val",
    show_default=True,
    type=click.Choice(["val", "test"]),
    help="Its data.",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def evaluate(config: Path, checkpoint: Path, split: str, overrides: tuple[str, ...]) -> None:
    """Measure the S2EF and denoising errors of a checkpoint.

    OVERRIDES change the config, as in training: --optim.dens.sigma=0.15
    """
    from dens.fairchem1.evaluate import evaluate_command

    evaluate_command(config, checkpoint, split=split, overrides=list(overrides))


@click.command("export")
@click.argument("checkpoint", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="File to write.")
@click.option("--raw", is_flag=True, help="Take the weights as trained, not their average (EMA).")
@click.option("--safetensors", is_flag=True, help="Write the bare weights in that format.")
def export(checkpoint: Path, out: Path, raw: bool, safetensors: bool) -> None:
    """Write CHECKPOINT as stock EquiformerV2, which runs without dens."""
    from dens.fairchem1.checkpoints.export import export_checkpoint

    click.echo(export_checkpoint(checkpoint, out, raw=raw, bare=safetensors))

"""One training step, and its loss written as plain loops."""

from __future__ import annotations

import math

from helpers.stress_settings import SCALES, WEIGHTS


def one_step(trainer, batch, step=1):
    """Compute outputs and loss of one training step."""
    trainer.model.train()
    trainer.step, trainer.epoch = step, 0.25
    out = trainer._forward(batch)
    return out, trainer._compute_loss(out, batch)


def loss_by_loop(trainer, out, batch) -> float:
    """Compute the loss of DeNS (arXiv:2403.09549) structure by structure and atom by atom."""
    dens = trainer.dens
    lambda_e, lambda_f = 2.0, 100.0
    scale_f = 2.0 if "energy_and_forces" in trainer.config["model"]["heads"] else 1.5
    energy = sum(
        abs(out["energy"][s].item() - (batch.energy[s].item() + 0.5) / 2.0)
        for s in range(len(batch.natoms))
    ) / len(batch.natoms)
    force_sum = noise_sum = 0.0
    n_clean = n_corrupted = 0
    for i in range(len(batch.pos)):
        if batch.noise_mask[i]:
            target = (batch.noise[i] / dens.noise_scale).tolist()
            noise_sum += math.dist(out["noise"][i].tolist(), target)
            n_corrupted += 1
        elif batch.fixed[i] == 0:
            force_sum += math.dist(out["forces"][i].tolist(), (batch.forces[i] / scale_f).tolist())
            n_clean += 1
    if dens.reduction == "joint":
        n_clean = n_corrupted = n_clean + n_corrupted
    return (
        lambda_e * energy
        + lambda_f * force_sum / max(n_clean, 1)
        + dens.denoising_coefficient * noise_sum / max(n_corrupted, 1)
        + stress_by_loop(trainer, out, batch)
    )


def stress_by_loop(trainer, out, batch) -> float:
    """Compute the loss of the stress, or of its parts, over clean structures; 0 without stress."""
    loss = 0.0
    clean = [s for s in range(len(batch.natoms)) if batch.sigma[s] == 0]
    for name in WEIGHTS.keys() & dict(trainer.loss_functions):
        scale, total = SCALES[name], 0.0
        for s in clean:
            found, expected = out[name][s].tolist(), batch[name][s].flatten().tolist()
            errors = [
                abs(a - (b - scale["mean"]) / scale["stdev"])
                for a, b in zip(found, expected, strict=True)
            ]
            total += sum(errors) / len(errors)
        loss += WEIGHTS[name] * total / max(len(clean), 1)
    return loss

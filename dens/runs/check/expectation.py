"""Say when a run corrupts structures, and what DeNS has changed in measured runs of its length."""

from __future__ import annotations

from dens.denoising.clean_phases import (
    FEW,
    MANY,
    SHORT,
    clean_end,
    corrupted_epochs,
    describe_phases,
    is_scheduled,
)
from dens.denoising.config import DeNSConfig
from dens.runs.check.findings import Findings, counted

SIZES = "50 to 2,600 structures"  # of the training sets measured (docs/results.md)
_TOO_SHORT = (
    ": DeNS has gained nothing in so few; with 0.5, the first half is corrupted, which changed the "
    "force errors by 0 to +3 % in 4 to 8 epochs"
)
LONG_EPOCHS = 60  # from so many on, where a data set was measured, DeNS was the better one


def check_expectation(
    dens: DeNSConfig,
    structures: int,
    epochs: float,
    finetuned: bool,
    findings: Findings,
) -> None:
    """Report in which epochs structures are corrupted, and what to expect of that.

    Args:
        structures: number of structures in the training set.
        epochs: number of epochs of the whole training.
        finetuned: whether it starts from a pretrained model.
    """
    if dens.prob == 0:
        return
    end = clean_end(dens, epochs, structures)
    if is_scheduled(dens):
        said = f"structures are corrupted {describe_phases(dens, epochs, structures)}"
        begin, stop = corrupted_epochs(dens, epochs, structures)
        if begin == stop:
            why = _TOO_SHORT if end == 1 else ""
            findings.warn("denoising", f"{said}{why} (optim.dens)")
            return
        findings.ok("denoising", f"{said} (optim.dens)")
    run = f"{counted(structures, 'structure')} in {epochs:.3g} epochs"
    if finetuned:
        told = "DeNS changed the force errors by 0 to +15 % in fine-tuning: compare with prob = 0"
    elif dens.corrupt_fixed_atoms == "only":
        told = "noise for fixed atoms changed the force errors by 0 to +2 % in 4 to 24 epochs"
    elif epochs >= LONG_EPOCHS:
        told = "DeNS lowered the force errors by 2 to 30 % in runs so long"
    elif epochs > SHORT[0]:
        told = "between the lengths that were measured: compare with prob = 0"
    elif epochs < FEW:
        told = (
            "DeNS changed the force errors by +15 to +17 % in 4 epochs, and by 0 to +3 % in 4 to 8 "
            f"with half of them clean; clean_end: auto corrupts none of fewer than {MANY:,} "
            "structures (optim.dens.clean_end)"
        )
    elif end >= SHORT[1]:
        told = "DeNS changed the force errors by -12 to +1 % in runs so short with half of it clean"
    else:
        told = (
            "DeNS changed the force errors by -5 to +10 % in runs so short, and by -12 to +1 % "
            "with clean_end: auto (optim.dens.clean_end)"
        )
    findings.ok("denoising", f"{run}: {told}; measured with {SIZES}")

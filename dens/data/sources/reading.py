"""Choose the labels of a structure: energy, forces and stress among all that a file holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import voigt_6_to_full_3x3_stress

LABELS = ("energy", "forces", "stress")
UNLABELLED = "--labels none takes the structures alone"
_CONVERGED = re.compile(r"(is)?(electronic|scf)?converged(electronic|scf)?")
_ENERGY = re.compile(r"energy|energies|toten|^e_?tot|^e0?$|^u0$", re.IGNORECASE)
_FORCES = re.compile(r"force|^f$", re.IGNORECASE)
_STRESS = re.compile(r"stress|virial", re.IGNORECASE)
_NO_LABEL = re.compile(r"weight|unit|sigma|std|error|cut|key|stresses", re.IGNORECASE)
# further properties of a structure that people train on, and that records do not keep
_OTHER = re.compile(
    r"charges?$|spin|multiplicity|dipole|quadrupole|polari[sz]|magmoms?$|stress|virial|"
    r"^energies$|dielectric|born_effective|^bec$|hirshfeld|hessian",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ReadOptions:
    """Options for the labels that are read from files.

    Attributes:
        energy_key, forces_key, stress_key: names in the file; None for those that ASE knows. A
            stress key with "virial" in its name holds -stress * volume.
        energy: "free" for the free energy, which the forces belong to; "sigma0" for ASE's energy,
            which codes with smearing extrapolate to sigma -> 0.
        keep_unconverged: keep structures whose electronic steps did not converge.
        keep_stress: read the stress where there is one.
        group_key: key whose text is kept as it stands in an xyz file, numbers too.
        labels: False for structures only: no labels are needed, and none are kept.
        pairs_key: array of each structure, (n_atoms, 3), with the positions that it was relaxed
            from; None for none.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    energy: str = "sigma0"
    keep_unconverged: bool = False
    keep_stress: bool = True
    group_key: str | None = None
    labels: bool = True
    pairs_key: str | None = None

    def key(self, label: str) -> str | None:
        """Return the name given for a label of `LABELS`; None for the usual one."""
        return getattr(self, f"{label}_key")


def is_label(key: str) -> bool:
    """Tell whether a key looks like one of a label, or of another property of a structure."""
    return any(p.search(key) for p in (_ENERGY, _FORCES, _STRESS, _OTHER))


def choose_labels(atoms: Atoms, options: ReadOptions) -> Atoms:
    """Put the labels that the options name into the results of the structure's calculator.

    Raises:
        ValueError: a name that the structure does not have, or a label of the wrong shape.
    """
    if not options.labels:
        return atoms
    results = _results(atoms)
    chosen = {
        label: _find(atoms, label, options.key(label)) for label in LABELS if options.key(label)
    }
    if options.energy == "free":
        if results.get("free_energy") is None:
            raise ValueError(f"expected a free energy (--energy free), got only {_known(atoms)}")
        chosen["energy"] = results["free_energy"]
    if not options.keep_stress:
        results.pop("stress", None)
        chosen.pop("stress", None)
    if chosen and atoms.calc is None:
        atoms.calc = SinglePointCalculator(atoms, **chosen)
    elif chosen:
        results.update(chosen)
    return atoms


def has_own_label(atoms: Atoms, label: str, key: str | None) -> bool:
    """Tell whether a structure lacks the key named for a label, and has the usual label instead."""
    if key is None or key in _values(atoms):
        return False
    return label == "stress" or _results(atoms).get(label) is not None


def read_labels(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Read the energy, and the forces, (n_atoms, 3), from the results of a calculator.

    Raises:
        ValueError: there are none, or several energies.
    """
    results = _results(atoms)
    lacking = [name for name in ("energy", "forces") if results.get(name) is None]
    if lacking:
        found = [(name, _likely(atoms, name)) for name in lacking]
        options = " ".join(f"--{name}-key {keys[0]}" for name, keys in found if keys)
        hint = f"dens data convert takes other keys with {options}" if options else UNLABELLED
        raise ValueError(f"expected energy and forces, got only {_known(atoms)}; {hint}")
    energy = np.asarray(results["energy"], dtype=float)
    if energy.size != 1:
        raise ValueError(f"expected one energy, got {energy.shape}")
    return energy.item(), np.asarray(results["forces"], dtype=float)


def read_stress(atoms: Atoms) -> np.ndarray | None:
    """Read the stress, (3, 3), from the results of a calculator; None if it has none.

    It has ASE's sign: positive where the cell would contract.

    Raises:
        ValueError: neither six numbers (xx, yy, zz, yz, xz, xy) nor nine.
    """
    stress = _results(atoms).get("stress")
    return None if stress is None else _full_stress(stress, "stress")


def is_unconverged(atoms: Atoms) -> bool:
    """Tell whether the structure is marked as one whose electronic steps did not converge.

    A mark is a false value under ``converged``, ``scf_converged``, ``electronic_converged`` or the
    like; the reader of VASP's files sets it.
    """
    marks = {**atoms.info, **_results(atoms)}
    return any(
        _is_false(value)
        for key, value in marks.items()
        if _CONVERGED.fullmatch(str(key).lower().replace("_", ""))
    )


def count_labels(atoms: Atoms, options: ReadOptions, counts: Counter) -> None:
    """Count what else the structure holds beside the labels taken, for `describe_counts`."""
    results = _results(atoms)
    energy = np.ravel(results["energy"])[0]
    free = results.get("free_energy")
    if options.energy != "free" and free is not None and abs(free - energy) > 1e-6:
        counts["free energy"] += 1
    has_stress = results.get("stress") is not None
    used = {options.key(label) for label in LABELS} | {"energy", "free_energy"}
    used |= {"stress"} if has_stress or not options.keep_stress else set()
    for key, value in _values(atoms).items():
        if key in used or value is None:
            continue
        if key in _likely(atoms, "energy"):
            if not np.isclose(float(np.ravel(value)[0]), energy, rtol=1e-9, atol=1e-6):
                counts[f"other energy: {key}"] += 1
        elif key in _likely(atoms, "forces"):
            counts[f"other forces: {key}"] += key != "forces" or options.forces_key is not None
        elif _OTHER.search(key):
            counts[f"not kept: {key}"] += 1
    counts["stress"] += has_stress


def count_unkept(atoms: Atoms, counts: Counter) -> None:
    """Count all labels that a structure has, none of which is kept, for `describe_counts`."""
    for key, value in _values(atoms).items():
        if value is not None and is_label(key):
            counts[f"not kept: {key}"] += 1


def largest_force(atoms: Atoms, free: np.ndarray) -> float | None:
    """Return the largest force on a free atom, in the units of the file; None without forces.

    Args:
        free: (n_atoms,) bool.
    """
    forces = np.asarray(_results(atoms).get("forces"), dtype=float)
    if forces.shape != (len(atoms), 3) or not free.any():
        return None
    return float(np.linalg.norm(forces[free], axis=1).max())


def describe_counts(counts: Mapping[str, int], options: ReadOptions) -> Iterator[str]:
    """Yield one line for each choice that was made, from the counts of `count_labels`."""
    if counts.get("unconverged"):
        kept = "kept" if options.keep_unconverged else "left out: --keep-unconverged keeps them"
        yield (
            f"{counts['unconverged']} structures, whose electronic steps did not converge, are "
            f"{kept}"
        )
    if counts.get("stress"):
        virial = "virial" in (options.stress_key or "").lower()
        made = f", made of {options.stress_key} (-virial / volume)" if virial else ""
        yield (
            f"{counts['stress']} structures with stress, which is kept in eV/Å^3, positive where "
            f"the cell would contract{made}"
        )
    if counts.get("stress without cell"):
        yield (
            f"the stress of {counts['stress without cell']} structures without periodic boundaries "
            "is not kept"
        )
    if counts.get("free energy"):
        yield (
            f"{counts['free energy']} structures have a free energy that differs from their energy "
            "(sigma -> 0): the latter was taken; --energy free takes the former"
        )
    for label in ("energy", "forces"):
        others = _counted(counts, f"other {label}: ")
        if others:
            taken = "free_energy" if (label, options.energy) == ("energy", "free") else None
            taken = taken or options.key(label) or label
            also = f"{taken} was taken of structures that also have {others}"
            yield f"{also}: --{label}-key takes another"
    others = _counted(counts, "not kept: ")
    if others:
        yield f"not kept, with the number of structures: {others}"


def _counted(counts: Mapping[str, int], prefix: str) -> str:
    return ", ".join(
        f"{key.removeprefix(prefix)} ({count})"
        for key, count in sorted(counts.items())
        if key.startswith(prefix) and count
    )


def _results(atoms: Atoms) -> dict[str, Any]:
    # asking the structure itself would compare it with the calculator's copy, which is slow
    return getattr(atoms.calc, "results", {})


def _values(atoms: Atoms) -> dict[str, Any]:
    """Return all that a structure has under names."""
    return {**atoms.arrays, **{str(k): v for k, v in atoms.info.items()}, **_results(atoms)}


def _known(atoms: Atoms) -> str:
    has = [name for name, value in _results(atoms).items() if value is not None]
    return ", ".join(map(str, [*has, *atoms.info, *atoms.arrays]))


def _likely(atoms: Atoms, label: str) -> list[str]:
    """List the keys that look like a label and have its shape."""
    pattern = {"energy": _ENERGY, "forces": _FORCES, "stress": _STRESS}[label]
    sizes = {"energy": (1,), "forces": (3 * len(atoms),), "stress": (6, 9)}[label]
    return [
        key
        for key, value in _values(atoms).items()
        if pattern.search(key)
        and not _NO_LABEL.search(key)
        and np.size(value) in sizes
        and np.asarray(value).dtype.kind in "if"
    ]


def _find(atoms: Atoms, label: str, key: str) -> Any:
    value = _values(atoms).get(key)
    if value is None:
        likely = _likely(atoms, label)
        hint = f"; likely: {', '.join(likely)}" if likely else ""
        raise ValueError(
            f"expected the key {key!r} (--{label}-key), got only {_known(atoms)}{hint}"
        )
    shape = {"energy": (), "forces": (len(atoms), 3)}.get(label)
    try:
        value = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{key} (--{label}-key) must be numbers, got {value!r:.40}") from None
    if label == "stress":
        stress = _full_stress(value, key)
        return -stress / atoms.get_volume() if "virial" in key.lower() else stress
    if value.size == 1 and label == "energy":
        return value.item()
    if value.shape != shape:
        raise ValueError(
            f"{key} (--{label}-key) must be {shape or 'one number'}, got {value.shape}"
        )
    return value


def _full_stress(values: Any, key: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.size == 6:
        return voigt_6_to_full_3x3_stress(values.reshape(6))
    if values.size != 9:
        raise ValueError(f"{key} must be six or nine numbers, got {values.shape}")
    return values.reshape(3, 3)


def _is_false(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("f", "false", "no", "0")
    return np.ndim(value) == 0 and value is not None and not value

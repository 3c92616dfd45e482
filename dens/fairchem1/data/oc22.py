"""OC22's data set with linear reference energies, subtracted in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols
from fairchem.core.common.registry import registry
from fairchem.core.datasets import oc22_lmdb_dataset

from dens.fairchem1.data.safe_lmdb import SafeRecords, reading_safely
from dens.settings import ConfigError

# eV per atom; the published fit holds 0, 156 or 1e4 to 1e12 for elements that OC22 does not have,
# and 0.3 to 17 for those it has
PLAUSIBLE = (0.01, 100.0)


@registry.register_dataset("dens_oc22_lmdb")
class OC22LmdbDataset(SafeRecords, reading_safely(oc22_lmdb_dataset.OC22LmdbDataset)):
    r"""fairchem's ``oc22_lmdb``, in which ``lin_ref`` works.

    .. math:: y = E - \sum_i c(Z_i)

    fairchem-core 1.10 reads ``lin_ref`` and then forgets it, so that models train on energies of
    -900 eV. Its other way, ``transforms.element_references``, subtracts in float32 after the cast,
    which costs up to 1.4 meV on frames of OC22. Here the subtraction is in double precision.

    With ``train_on_oc20_total_energies`` and ``oc20_ref``, entries of OC20 get total energies
    first, as in fairchem.

    Args:
        config: ``src``, ``key_mapping`` and so on as for ``oc22_lmdb``; ``lin_ref`` is an ``.npz``
            with the key ``coeff``: eV per atom, by atomic number.

    Raises:
        ConfigError: ``lin_ref`` is no such file. When an entry is read: an element or an OC20
            system that has no reference energy.
    """

    def __init__(self, config: dict[str, Any], transform: None = None) -> None:
        self._coeff = _load_coeff(config["lin_ref"]) if config.get("lin_ref") else None
        super().__init__(config, transform)

    def __getitem__(self, idx: int):
        """Entry ``idx``; its energy is a Python float, eV."""
        try:
            data = super().__getitem__(idx)
        except KeyError as error:
            raise ConfigError(
                f"{self.path}: entry {idx} is from OC20, but {error} has no reference energy in "
                f"{self.config.get('oc20_ref')} (dataset.train.oc20_ref)"
            ) from None
        if self._coeff is not None:
            reference = self._reference(data, idx)
            for name in self._energy_names(data):
                data[name] = float(data[name]) - reference
        return data

    def _energy_names(self, data) -> list[str]:
        """Under which names ``key_mapping`` puts the energy; none in unlabelled data."""
        names = []
        for source in ("y_relaxed", "y"):
            mapped = (self.key_mapping or {}).get(source, source)
            names += [mapped] if isinstance(mapped, str) else mapped
        return [name for name in dict.fromkeys(names) if name in data]

    def _reference(self, data, idx: int) -> float:
        numbers = data.atomic_numbers.long().numpy()
        total = float(self._coeff[numbers].sum())
        if np.isnan(total):
            absent = np.unique(numbers[np.isnan(self._coeff[numbers])])
            raise ConfigError(
                f"{self.path}: entry {idx} has {', '.join(chemical_symbols[z] for z in absent)}, "
                f"which has no reference energy in {self.config['lin_ref']} "
                "(dataset.train.lin_ref)"
            )
        return total


def _load_coeff(path: str) -> np.ndarray:
    """(119,) eV by atomic number, NaN for absent elements."""
    try:
        with np.load(path) as file:
            given = np.asarray(file["coeff"], dtype=np.float64)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(
            f"lin_ref must be an .npz with the key coeff, got {path}: {error} "
            "(dataset.train.lin_ref)"
        ) from None
    if given.ndim != 1 or len(given) > len(chemical_symbols):
        raise ConfigError(
            f"lin_ref must hold one number for each atomic number up to {len(chemical_symbols)}, "
            f"got coeff of shape {given.shape} in {path} (dataset.train.lin_ref)"
        )
    low, high = PLAUSIBLE
    coeff = np.full(len(chemical_symbols), np.nan)
    coeff[: len(given)] = np.where((np.abs(given) >= low) & (np.abs(given) <= high), given, np.nan)
    return coeff

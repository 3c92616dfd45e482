"""OC22 data set that subtracts linear reference energies in double precision."""

from __future__ import annotations

from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.datasets import oc22_lmdb_dataset

from dens.data.references import load_references
from dens.fairchem1.data.safe_lmdb import SafeRecords, reading_safely
from dens.settings import ConfigError


@registry.register_dataset("dens_oc22_lmdb")
class OC22LmdbDataset(SafeRecords, reading_safely(oc22_lmdb_dataset.OC22LmdbDataset)):
    r"""fairchem's ``oc22_lmdb`` with a working ``lin_ref``.

    .. math:: y = E - \sum_i c(Z_i)

    fairchem-core 1.10 reads ``lin_ref`` and then discards it, so models train on energies of
    -900 eV. Its alternative, ``transforms.element_references``, subtracts in float32 after the
    cast, an error of up to 1.4 meV on frames of OC22. Here the subtraction is in double precision.

    With ``train_on_oc20_total_energies`` and ``oc20_ref``, entries of OC20 get total energies
    first, as in fairchem.

    Args:
        config: ``src``, ``key_mapping`` and so on as for ``oc22_lmdb``; ``lin_ref`` is a file that
            :func:`dens.data.references.load_references` reads.

    Raises:
        ConfigError: ``lin_ref`` is not such a file. When an entry is read: an element or an OC20
            system without a reference energy.
    """

    def __init__(self, config: dict[str, Any], transform: None = None) -> None:
        self._references = None
        if config.get("lin_ref"):
            try:
                self._references = load_references(config["lin_ref"])
            except ValueError as error:
                raise ConfigError(f"{error} (dataset.train.lin_ref)") from None
        super().__init__(config, transform)

    def __getitem__(self, idx: int):
        """Read entry ``idx``; its energy is a Python float, eV."""
        try:
            data = super().__getitem__(idx)
        except KeyError as error:
            raise ConfigError(
                f"{self.path}: entry {idx} is from OC20, but {error} has no reference energy in "
                f"{self.config.get('oc20_ref')} (dataset.train.oc20_ref)"
            ) from None
        if self._references is not None:
            try:
                reference = self._references.energy(data.atomic_numbers.long().numpy())
            except ValueError as error:
                raise ConfigError(
                    f"{self.path}: entry {idx}: {error} (dataset.train.lin_ref)"
                ) from None
            for name in self._energy_names(data):
                data[name] = float(data[name]) - reference
        return data

    def _energy_names(self, data) -> list[str]:
        """List the fields that hold the energy after ``key_mapping``; none in unlabelled data."""
        names = []
        for source in ("y_relaxed", "y"):
            mapped = (self.key_mapping or {}).get(source, source)
            names += [mapped] if isinstance(mapped, str) else mapped
        return [name for name in dict.fromkeys(names) if name in data]

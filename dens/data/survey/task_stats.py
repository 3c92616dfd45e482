"""Format statistics of a data set for the tasks of a config of fairchem-core 2."""

from __future__ import annotations

import numpy as np
import yaml

from dens.data.references import References


def format_for_tasks(header: str, force_rms: float, references: References | None) -> str:
    """Format the normaliser and the references of the elements as YAML.

    fairchem's own configs have these names: ``normalizer_rmsd`` for the normalisers of all tasks,
    ``elem_refs`` for the ``ElementReferences`` of the energy.

    Args:
        header: the data, for the first line.
        force_rms: root mean square of the force components on free atoms, eV/Å; 0: no forces.
        references: of the elements.
    """
    text = f"# {header}\n"
    if force_rms:
        text += "# eV/Å, root mean square of the force components on free atoms\n"
        text += yaml.safe_dump({"normalizer_rmsd": force_rms})
    if references:
        coeff = np.nan_to_num(references.coeff).round(6).tolist()
        listed = yaml.safe_dump(coeff, default_flow_style=True, width=96).strip()
        text += "# eV, by atomic number; 0: not in these data\n"
        text += "elem_refs: " + listed.replace("\n", "\n  ") + "\n"
    return text


def remarks_for_tasks(force_rms: float, references: References | None) -> list[str]:
    """Say what the YAML leaves out, and what the fit of the references is worth."""
    missing = "no free atom has a force: the YAML has no normalizer_rmsd"
    return [*(references.remarks if references else ()), *([] if force_rms else [missing])]

"""Read VASP's output: vasprun.xml and OUTCAR, with a mark on steps that did not converge."""

from __future__ import annotations

import io
import re
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.formats import get_compression, open_with_compression

NELM = 60  # VASP's default for the number of electronic iterations
_HEAD = 20_000  # bytes that tell what a file is
_NAMES = {
    "vasp-out": re.compile(r"(^|[._-])OUTCAR"),
    "vasp-xml": re.compile(r"(^|[._-])vasprun"),
}
_DERIVED = re.compile(
    r"\.(txt|csv|dat|json|ya?ml|py|ipynb|png|svg|pdf|jpe?g|npy|pkl|h5|hdf5|tar|zip)$"
)
_XML_TOKENS = re.compile(
    rb'<calculation\b|<scstep\b|<i\b[^>]*\bname="NELM"[^>]*>\s*(\d+)|</calculation>'
)
_OUTCAR_TOKENS = re.compile(
    rb"Iteration[^(\n]*\(\s*(\d+)\)|\bNELM\s*=\s*(\d+)|aborting loop because (EDIFF is reached)|"
    rb"(FREE ENERGIE OF THE ION-ELECTRON SYSTEM)"
)


def vasp_format(path: str | Path) -> str | None:
    """Tell ASE's name of VASP's output, by the name of a file or else by its first bytes.

    Names may have more around them: ``h2.OUTCAR``, ``vasprun.xml.relax1``, ``OUTCAR_2.gz``.

    Returns:
        vasp-xml, vasp-out, or None for anything else.
    """
    name, _ = get_compression(Path(path).name)
    named = [format for format, pattern in _NAMES.items() if pattern.search(name)]
    return named[0] if named and not _DERIVED.search(name) else _format_by_content(path)


def _format_by_content(path: str | Path) -> str | None:
    try:
        with open_with_compression(str(path), "rb") as file:
            head = file.read(_HEAD)
    except Exception:  # a damaged archive, which is reported when it is read
        return None
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?<modeling>", head):
        return "vasp-xml"
    if re.match(rb"\s*vasp\.\d", head) and re.search(rb"POTCAR:|INCAR:", head):
        return "vasp-out"
    return None


def read_vasp(path: str, format: str) -> list[Atoms]:
    """Read all ionic steps; those that did not converge have a false ``converged`` in their info.

    Args:
        format: vasp-xml or vasp-out.
    """
    frames = _read_steps(path, format)
    for atoms, unconverged in zip(frames, find_unconverged(path, format), strict=False):
        if unconverged:
            atoms.info["converged"] = False
    return frames


class _NamedText(io.StringIO):
    """Text of a file, with the name that ASE looks for beside it."""

    name = ""


def _read_steps(path: str, format: str) -> list[Atoms]:
    source: str | _NamedText = str(path)
    if format == "vasp-out" and get_compression(source)[1] in ("bz2", "xz"):
        with open_with_compression(source, "rt") as file:  # has no name, unlike other files
            source = _NamedText(file.read())
        source.name = str(path)
    return ase.io.read(source, ":", format=format, do_not_split_by_at_sign=True)


def find_unconverged(path: str, format: str) -> list[bool]:
    """Tell for each ionic step whether it used all NELM electronic iterations.

    An OUTCAR also says whether the last of them met the criterion EDIFF.
    """
    with open_with_compression(path, "rb") as file:
        text = file.read()
    return _unconverged_xml(text) if format == "vasp-xml" else _unconverged_outcar(text)


def _unconverged_xml(text: bytes) -> list[bool]:
    limit, counts = NELM, []
    for match in _XML_TOKENS.finditer(text):
        token = match[0]
        if match[1]:
            limit = int(match[1])
        elif token.startswith(b"<calculation"):
            counts.append(0)
        elif token.startswith(b"<scstep") and counts:
            counts[-1] += 1
    return [count >= limit for count in counts]


def _unconverged_outcar(text: bytes) -> list[bool]:
    limit, iteration, reached, flags = NELM, 0, False, []
    for match in _OUTCAR_TOKENS.finditer(text):
        if match[1]:
            iteration, reached = int(match[1]), False
        elif match[2]:
            limit = int(match[2])
        elif match[3]:
            reached = True
        else:
            flags.append(iteration >= limit and not reached)
            iteration = 0
    return flags


def is_cut(path: str | Path) -> bool:
    """Tell whether a vasprun.xml lacks its end."""
    try:
        with open_with_compression(str(path), "rb") as file:
            if get_compression(str(path))[1] is None:
                file.seek(max(0, Path(path).stat().st_size - 1000))
            return b"</modeling>" not in file.read()[-1000:]
    except Exception:  # a damaged archive
        return True


def best_of(paths: list[Path]) -> Path:
    """Choose among the files of one calculation: a whole vasprun.xml, else that with most steps."""

    def rank(path: Path) -> tuple:
        is_xml, is_packed = vasp_format(path) == "vasp-xml", get_compression(path.name)[1]
        whole = is_xml and not is_cut(path)
        return whole, 0 if whole else _count_steps(path), is_xml, is_packed is None

    return max(paths, key=rank) if len(paths) > 1 else paths[0]


def _count_steps(path: Path) -> int:
    try:
        return len(_read_steps(path, vasp_format(path)))
    except Exception:  # nothing in it can be read
        return 0


def calculation_of(path: Path) -> tuple[Path, str]:
    """Return what the files of one calculation have in common: their folder, and what their names
    have beside vasprun.xml or OUTCAR."""
    name, _ = get_compression(path.name)
    rest = re.sub(r"vasprun(?=.*\.xml)|\.xml|vasprun|OUTCAR", "", name)
    return path.parent, rest.strip("._-")

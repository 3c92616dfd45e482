"""Find the installed version of fairchem-core; refuse the wrong one by name."""

from __future__ import annotations

from importlib import metadata


def fairchem_version() -> str:
    """Version of the installed fairchem-core; empty where there is none."""
    try:
        return metadata.version("fairchem-core")
    except metadata.PackageNotFoundError:
        return ""


def fairchem_major() -> int | None:
    """Major version of the installed fairchem-core; None where there is none."""
    major = fairchem_version().partition(".")[0]
    return int(major) if major.isdigit() else None


def install_hint(major: int) -> str:
    """Return the command that installs dens with that major version of fairchem-core."""
    return f"pip install 'fairchem-dens[fairchem{major}]'"


def explain_missing(error: ImportError) -> str:
    """Describe in one line which fairchem-core an import failed to find, and how to install it."""
    if fairchem_version() and fairchem_version() in str(error):  # says all by itself
        return str(error)
    if fairchem_major() == 1:
        return f"this needs fairchem-core 1.10: {install_hint(1)} ({error})"
    return f"this needs fairchem-core: {install_hint(2)}, or {install_hint(1)} for 1.10 ({error})"


def require_major(major: int, what: str, instead: str = "") -> None:
    """Refuse another major version of fairchem-core; none at all is found by the import.

    Args:
        major: the version that is needed.
        what: what needs it, for the message.
        instead: what serves with the installed version, for the message.

    Raises:
        ImportError: names the version that is needed and the one that is installed.
    """
    if fairchem_major() not in (None, major):
        needed = {1: "1.10"}.get(major, str(major))
        offered = f", or take {instead}" if instead else ""
        raise ImportError(
            f"{what} needs fairchem-core {needed}, and {fairchem_version()} is installed: "
            f"{install_hint(major)}{offered}",
            name="fairchem",
        )

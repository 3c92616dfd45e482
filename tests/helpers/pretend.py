"""Let another version of fairchem-core seem to be installed, or none."""

from __future__ import annotations

from importlib import metadata

import pytest

_VERSION = metadata.version


def pretend_fairchem(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Make the metadata of fairchem-core say a version; None as where it is not installed."""

    def version_of(name: str) -> str:
        if name != "fairchem-core":
            return _VERSION(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", version_of)

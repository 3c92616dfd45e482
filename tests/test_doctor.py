"""`dens doctor` describes what is installed, broken or missing, and goes on."""

from __future__ import annotations

import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from helpers.pretend import pretend_fairchem

import dens
from dens.install import doctor

METADATA = """\
Provides-Extra: report
Requires-Dist: plotly; extra == "report"
Requires-Dist: click<1; extra == "report"
Provides-Extra: dashboard
Requires-Dist: click; extra == "dashboard"
Provides-Extra: test
Requires-Dist: fairchem-dens[report]; extra == "test"
Provides-Extra: fairchem2
Requires-Dist: fairchem-core>=2; extra == "fairchem2"
Requires-Dist: click
Requires-Dist: no-such-package
"""
VERSION = metadata.version


def describe(import_host=lambda: None) -> dict[str, str]:
    return dict(doctor.describe(import_host))


def break_host() -> None:
    raise RuntimeError("two\nlines")


@pytest.fixture
def installed(monkeypatch):
    """As if the packages of METADATA's dens were installed, but plotly."""
    import email

    def version_of(name: str) -> str:
        if name in ("plotly", "no-such-package"):
            raise metadata.PackageNotFoundError(name)
        return VERSION(name)

    monkeypatch.setattr(metadata, "metadata", lambda name: email.message_from_string(METADATA))
    monkeypatch.setattr(metadata, "version", version_of)


def test_the_lines_fit_into_a_bug_report():
    lines = describe()
    assert lines["dens"] == f"{dens.__version__} in {Path(dens.__file__).parent}"
    assert lines["torch"].startswith(VERSION("torch").split("+")[0])
    assert "CPU (" in lines["devices"]
    assert 9 <= len(lines) <= 16
    assert not any("\n" in line for line in lines.values())


def test_missing_extras_name_their_remedy(installed):
    lines = describe()
    assert lines["extras"] == "dashboard complete"
    assert lines["extra report"] == (
        f"lacks plotly, click<1 (here is {VERSION('click')}): pip install 'fairchem-dens[report]'"
    )
    assert lines["required"] == "lacks no-such-package: pip install fairchem-dens"
    assert not {"extra fairchem2", "extra test", "extra dashboard"} & set(lines)


@pytest.mark.parametrize(
    ("version", "import_host", "line"),
    [
        (None, break_host, "none: pip install 'fairchem-dens[fairchem2]', or "),
        ("1.10.0", break_host, "1.10.0, cannot be imported: RuntimeError: two lines"),
        ("2.24.0", lambda: None, "2.24.0"),
        ("3.0.0", break_host, "3.0.0, which dens does not know: "),
    ],
)
def test_any_host(version, import_host, line, monkeypatch):
    pretend_fairchem(monkeypatch, version)
    assert describe(import_host)["fairchem-core"].startswith(line)


def test_broken_packages_are_described_by_their_errors(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # whose import fails
    monkeypatch.setitem(sys.modules, "e3nn", None)
    lines = describe(break_host)
    assert ", cannot be imported: ModuleNotFoundError: " in lines["torch"]
    assert ", cannot be imported: ModuleNotFoundError: " in lines["e3nn"]
    assert lines["devices"] == "unknown without torch"
    assert "extras" in lines


@pytest.mark.parametrize(
    ("imported", "owner", "remedy"),
    [
        ("dens.cli import main", "dens", False),
        ("fairchem.core._cli import main", "fairchem-core", True),
        ("elsewhere import main", "unknown origin", False),
    ],
)
def test_the_owner_of_the_script(imported, owner, remedy, tmp_path, monkeypatch):
    script = tmp_path / "fairchem"
    script.write_text(f"#!{sys.executable}\nfrom {imported}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    line = describe()["fairchem"]
    assert line.startswith(f"{script}, the program of {owner}, not in ")
    assert sysconfig.get_path("scripts") in line
    assert ("pip install --force-reinstall --no-deps fairchem-dens" in line) == remedy

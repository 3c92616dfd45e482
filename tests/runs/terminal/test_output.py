"""What a run prints, and what goes to its file: for users, warnings, errors, several ranks."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from dens.runs.terminal import output as module
from dens.runs.terminal.output import VERBOSE, active_output, show, terminal_output

HOST = logging.getLogger()


def host_warns(category: type[Warning], text: str) -> None:
    """Warn as a module of another package does."""
    warnings.warn_explicit(text, category, "other/package.py", 7, registry={})


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    for name in (VERBOSE, "RANK", "SLURM_PROCID", "WANDB_MODE", "WANDB_QUIET", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    warnings.simplefilter("always")


def test_a_user_sees_lines_for_users_and_the_file_has_all(tmp_path, capsys):
    with terminal_output(noise=["^Disabled"]) as output:
        HOST.info("host before the folder is known")
        with terminal_output(tmp_path, noise=["nothing to you"]) as inner:
            assert inner is output
            show("for the user")
            HOST.info("host")
            HOST.warning("10 structures have no energy")
            HOST.warning("Disabled something")
            HOST.warning("this says nothing to you")
            HOST.error("Disabled, but an error")
            host_warns(FutureWarning, "broadcast is deprecated")
            host_warns(RuntimeWarning, "overflow in square")
    shown = capsys.readouterr()
    assert shown.out == "for the user\n"
    assert shown.err.splitlines() == [
        "warning: 10 structures have no energy",
        "error: Disabled, but an error",
        "warning: overflow in square",
    ]
    kept = (tmp_path / "host.log").read_text()
    for line in ("host before", "for the user", "Disabled something", "broadcast", "overflow"):
        assert kept.count(line) == 1, line
    assert "other/package.py:7" in kept


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_another_rank_prints_warnings_alone_with_its_number(
    variable, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv(variable, "3")
    with terminal_output(tmp_path):
        show("for the user")
        HOST.warning("no memory")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "rank 3: warning: no memory\n")
    assert "for the user" in (tmp_path / "host-rank3.log").read_text()


def test_a_traceback_is_raised_and_kept(tmp_path, capsys):
    def fail() -> None:
        try:
            [][0]
        except IndexError:
            logging.exception("no figure")
        1 / 0  # noqa: B018

    with pytest.raises(ZeroDivisionError), terminal_output(), terminal_output(tmp_path):
        fail()
    assert "error: no figure\nTraceback" in capsys.readouterr().err
    assert "ZeroDivisionError" in (tmp_path / "host.log").read_text()


def test_logging_is_as_before_at_the_end(tmp_path, monkeypatch):
    console = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(HOST, "handlers", [*HOST.handlers, console])
    before, level, shower = HOST.handlers[:], HOST.level, warnings.showwarning
    with terminal_output(tmp_path):
        assert console not in HOST.handlers
        assert os.environ["WANDB_QUIET"] == "true"
    assert (HOST.handlers, HOST.level, warnings.showwarning) == (before, level, shower)
    assert "WANDB_QUIET" not in os.environ


def test_verbose_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(VERBOSE, "1")
    before = HOST.handlers[:]
    with terminal_output(tmp_path) as output:
        assert output is None
        assert HOST.handlers == before
        assert active_output() is None
    assert not list(tmp_path.iterdir())


def test_wandb_is_silent_where_it_has_no_address(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with terminal_output(tmp_path):
        assert "WANDB_SILENT" in os.environ
    assert module.VERBOSE == "DENS_VERBOSE"  # docs name it

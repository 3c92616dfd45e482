"""Run the program ``dens`` in the process of a test."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

from dens.cli import main


def run_program(*arguments: object) -> tuple[int, str]:
    """Run ``dens`` with the given words; return the exit status, and the output with its errors."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0), output.getvalue()
    return 0, output.getvalue()


def run_data(*arguments: object) -> str:
    """Run a command of ``dens data`` that must succeed; return its output."""
    status, output = run_program("data", *arguments)
    assert status == 0, output
    return output


def refused_data(*arguments: object) -> str:
    """Run a command of ``dens data`` that must fail; return its one line of error."""
    status, output = run_program("data", *arguments)
    assert status == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert output.endswith(f"{line}\n")
    return line.removeprefix("error: ")

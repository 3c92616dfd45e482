"""Run commands as typed in a shell, most of them in forks of one process that has imported dens."""

from __future__ import annotations

import glob
import multiprocessing
import os
import runpy
import shlex
import sys
import traceback
from multiprocessing import util
from pathlib import Path
from typing import NamedTuple

from helpers.hosts import MAJOR

_PRELOADED = {
    "1": ["dens.fairchem1.launch", "dens.fairchem1.evaluate"],
    "2": ["fairchem.core._cli", "dens.fairchem2.train.unit"],
}
# options with which our modules print, and neither measure nor start processes
_PRINTING = {"--help", "--table", "--list", "--report"}
_started: set[str] = set()  # modules that have run in a new interpreter
fork_server = multiprocessing.get_context("forkserver")
fork_server.set_forkserver_preload(_PRELOADED.get(MAJOR, []))


class Result(NamedTuple):
    """What a command left: its exit status, and what it printed."""

    status: int
    output: str


def run_command(command: str, folder: Path, timeout: float = 300) -> Result:
    """Run ``dens ...``, ``fairchem ...`` or ``python ...`` in a folder.

    Leading ``NAME=VALUE`` set the environment, and patterns are expanded.
    A module starts in a new interpreter the first time, in which it must import all that it needs.
    """
    words, log = _words(command, folder), folder / "output.txt"
    in_fork = bool(_started & {*words} and _PRINTING & {*words})
    _started.update(word for word in words if word.startswith(("benchmarks.", "experiments.")))
    process = fork_server.Process(target=_run, args=(words, in_fork, folder, log))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
    process.join()
    return Result(process.exitcode, log.read_text(encoding="utf-8"))


def _words(command: str, folder: Path) -> list[str]:
    words = []
    for word in shlex.split(command):
        found = sorted(glob.glob(word, root_dir=folder)) if "*" in word else []
        words += found or [word]
    return words


def _run(words: list[str], in_fork: bool, folder: Path, log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    status = 1
    try:
        status = _call(words, in_fork)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    util._exit_function()  # as at the end of a process: join what is left, and clean up
    os._exit(status or 0)


def _call(words: list[str], in_fork: bool) -> int:
    while "=" in words[0]:
        os.environ.update([words.pop(0).split("=", 1)])
    program, *words = words
    if program in ("dens", "fairchem"):
        from dens.cli import main

        sys.argv = [program, *words]
        main()
    elif program == "python" and in_fork:
        sys.argv, sys.path = words[1:], [os.getcwd(), *sys.path]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif program == "python":
        # a new interpreter, as scripts may set what is read when Triton is imported
        os.environ.pop("TRITON_INTERPRET", None)
        os.execv(sys.executable, [sys.executable, *words])
    else:
        raise ValueError(f"cannot run {program}")
    return 0

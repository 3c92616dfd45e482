"""Run the commands of a tutorial as a shell does, in a folder of their own, and print both.

In a terminal you type the commands yourself. Here they run in forks of one process that has loaded
torch and fairchem, which saves some seconds for each.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
_LOG_PREFIX = re.compile(r"^[-\d]+ [:\d]+ \S+:\d+: \(\w+\): ")  # time, file and level


class Shell:
    """Folder in which commands are run: ``shell("dens recipes")``.

    Args:
        python_path: folders with modules of your own, as in ``PYTHONPATH``.
    """

    def __init__(self, python_path: Sequence[Path] = ()) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        (self.folder / "configs").symlink_to(ROOT / "configs")
        path = [*map(str, python_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        )
        self._answers = iter(self._server.stdout or ())

    def __call__(self, command: str, *, lines: int = 0, grep: str = "", status: int = 0) -> None:
        """Run a command of dens, fairchem or python, and print what it says.

        Args:
            command: as it is typed.
            lines: print only so many of the last lines; 0: all.
            grep: print only lines with it.
            status: the exit status that is expected.

        Raises:
            RuntimeError: another exit status, or no line with ``grep``; with the output.
        """
        log = self.folder / "output.txt"
        task = {"words": self._words(command), "folder": str(self.folder), "log": str(log)}
        print(json.dumps(task), file=self._server.stdin, flush=True)
        got = int(next(self._answers))
        said = log.read_text(encoding="utf-8").splitlines()
        shown = [_LOG_PREFIX.sub("", line).rstrip() for line in said if grep in line][-lines:]
        if got != status or (grep and not shown):
            raise RuntimeError("\n".join([f"{command}: exit status {got}", *said[-30:]]))
        print(f"$ {command}", *shown, sep="\n", end="\n\n")

    def _words(self, command: str) -> list[str]:
        words = []
        for word in shlex.split(command):
            found = sorted(glob.glob(word, root_dir=self.folder)) if "*" in word else []
            words += found or [word]
        return words

    def link(self, package: str) -> None:
        """Put a package of the repository into the folder, as a clone has it."""
        for source in (ROOT / package).rglob("*.py"):
            target = self.folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, and print it."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")
        print(f"# {name}\n{text}")

    def read(self, name: str) -> list[dict]:
        """Read a file of JSON lines of the folder, such as ``metrics.jsonl``."""
        text = (self.folder / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def show(self, picture: str, dpi: int = 100) -> None:
        """Show a PNG file of the folder as a figure of its own size."""
        pixels = plt.imread(self.folder / picture)
        height, width = pixels.shape[:2]
        axes = plt.figure(figsize=(width / dpi, height / dpi), dpi=dpi).add_axes([0, 0, 1, 1])
        axes.imshow(pixels)
        axes.set_axis_off()

    def close(self) -> None:
        """End the process, and remove the folder."""
        self._server.communicate()
        self._temporary.cleanup()


def serve() -> None:
    """Run the tasks that come as lines of JSON, each in a fork; answer with the exit status."""
    import dens.fairchem1.launch  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(**task)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(words: list[str], folder: str, log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    program, *arguments = words
    if program == "python":
        os.execv(sys.executable, [sys.executable, *arguments])
    from dens.cli import main

    sys.argv, status = words, 1
    try:
        main(arguments)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()

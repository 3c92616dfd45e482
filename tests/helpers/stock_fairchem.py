"""Run stock fairchem in processes that cannot import dens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import dens.fairchem1.compat

HIDE = '''
import os
import sys

import torch


class NoDens:
    """Importer that comes first and finds no dens."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "dens":
            raise ModuleNotFoundError("No module named 'dens'", name="dens")
        return None


sys.meta_path.insert(0, NoDens)
import stand_ins

stand_ins.install()
if os.environ.get("MEND_RELAXATIONS"):
    stand_ins.repair()
'''

SAME_FRAMES = """
torch.rand_like = lambda x, **_: torch.rand(
    x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype
)
"""


def same_frames(x: torch.Tensor, **_) -> torch.Tensor:
    """Replace ``torch.rand_like``, so that the frames of edges equal those of a stock process."""
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)


class StockFairchem:
    """Runner of Python processes that have fairchem but not dens.

    fairchem 1.10 cannot start without torch_scatter and torch_sparse, and cannot relax with
    ASE >= 3.26. So dens's file that repairs this is copied to the folder under another name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "sitecustomize"
        self.path.mkdir(parents=True)
        (self.path / "sitecustomize.py").write_text(HIDE + SAME_FRAMES)
        shutil.copy(dens.fairchem1.compat.__file__, self.path / "stand_ins.py")

    def python(self, *args: object, **environment: str) -> str:
        """Run ``python ARGS`` and return its log; AssertionError with the log's end if it fails."""
        path = os.pathsep.join([str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, **environment}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, args)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def fairchem(self, mode: str, config: Path, checkpoint: Path) -> str:
        """Run ``fairchem --mode MODE`` on the CPU."""
        options = ["--config-yml", config, "--checkpoint", checkpoint, "--cpu"]
        mend = {"MEND_RELAXATIONS": "1"} if mode == "run-relaxations" else {}
        return self.python("-m", "fairchem.core._cli", "--mode", mode, *options, **mend)

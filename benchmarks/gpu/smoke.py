"""Short training runs of the demo in several ways at once, and collectives of one rank."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed

from benchmarks.gpu import numbers
from benchmarks.gpu.harness import Stage, markdown

ROOT = Path(__file__).parents[2]
DENS, PLAIN = (f"configs/oc20/eqv2_{name}.yml" for name in ("dens_demo", "demo"))
STOCK, BF16 = "--model.backbone.fast=false", "--optim.amp_dtype=bfloat16"
GRAPHS = "--model.backbone.cuda_graphs=true"
# name: (config, options, what it needs to run: "" always, "many" not with --tiny, "gpu" a GPU)
RUNS = {
    "fp32, fast": (DENS, [], ""),
    "fp32, stopped": (DENS, [], ""),
    "bfloat16": (DENS, [BF16], ""),
    "fp32, fast: false": (DENS, [STOCK], "many"),
    "fairchem's baseline": (PLAIN, [], "many"),
    "bfloat16, fast: false": (DENS, [BF16, STOCK], "gpu"),
    "--amp (float16)": (DENS, ["--amp"], "gpu"),
    "--gp-gpus 1": (DENS, ["--gp-gpus", "1"], "gpu"),
    "CUDA graphs": (DENS, [GRAPHS], "gpu"),
    "CUDA graphs, bfloat16": (DENS, [GRAPHS, BF16], "gpu"),
    "CUDA graphs, --amp": (DENS, [GRAPHS, "--amp"], "gpu"),
}


class Run:
    """Training run of the demo in a process of its own."""

    def __init__(self, stage: Stage, folder: Path, config: str, options: list[str]) -> None:
        steps = 12 if stage.args.tiny else 100
        self.log = folder / "output.txt"
        folder.mkdir()
        fixed = f"--config {config} --quiet --timestamp-id run --print-every 50"
        few = f"--dataset.train.first_n={8 * steps} --dataset.val.first_n=16 --optim.max_epochs=1"
        self.command = [sys.executable, "main.py", *fixed.split(), *few.split(), *options]
        self.command += ["--logger.name=tensorboard", "--run-dir", str(folder)]
        self.command += ["--cpu"] if stage.args.cpu else []
        self.history = folder / "logs/tensorboard/run/metrics.jsonl"
        self.start()

    def start(self) -> None:
        """Start, or go on from the checkpoint of the run."""
        self.began = time.monotonic()
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)

    def rows(self) -> list[dict]:
        """Read the recorded steps."""
        if not self.history.is_file():
            return []
        lines = self.history.read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row["split"] == "train" and "loss" in row]

    def result(self, timeout: float) -> dict:
        """Wait for the end of the run and sum it up."""
        try:
            status = self.process.wait(max(timeout, 1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = "timeout"
        rows, passed = self.rows(), round(time.monotonic() - self.began, 1)
        found = {"exit": status, "seconds": passed, "steps": len(rows)}
        if rows:
            losses = [row["loss"] for row in rows]
            size = max(1, len(losses) // 5)
            found |= {"first": statistics.mean(losses[:size])}
            found |= {"last": statistics.mean(losses[-size:])}
            found["skipped"] = rows[-1].get("skipped_steps")
        if status != 0:
            found["output"] = self.log.read_text()[-3000:]
        return found


def measure(stage: Stage) -> None:
    """Train in several ways while this process compares numbers, and collect the runs."""
    if not (ROOT / "data/demo/train").is_dir():
        raise ValueError("smoke: there is no data/demo; dens data demo data/demo makes it")
    left_out = {"many"} if stage.args.tiny else set()
    left_out |= {"gpu"} if stage.args.cpu else set()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: Run(stage, Path(folder, str(i)), config, options)
            for i, (name, (config, options, needs)) in enumerate(RUNS.items())
            if needs not in left_out
        }
        try:
            watch(stage, runs)
        finally:
            for run in runs.values():
                run.process.kill()
                run.process.wait()


def watch(stage: Stage, runs: dict[str, Run]) -> None:
    """Stop and resume one of the runs, compare numbers meanwhile, and wait for all."""
    stopped = runs["fp32, stopped"]
    with stage.part("SIGTERM"):
        least = 2 if stage.args.tiny else 20
        while len(stopped.rows()) < least and stopped.process.poll() is None and stage.left() > 30:
            time.sleep(0.05)
        stopped.process.send_signal(signal.SIGTERM)
        status = stopped.process.wait(60)
        stage.found["stopped"] = {"exit": status, "steps": len(stopped.rows())}
        stopped.start()
    numbers.measure(stage)
    with stage.part("collectives"):
        stage.found["collectives"] = collectives(stage)
    for name, run in runs.items():
        with stage.part(name):
            stage.found.setdefault("runs", {})[name] = run.result(stage.left())
    with stage.part("resumed"):
        pairs = zip(runs["fp32, fast"].rows(), stopped.rows(), strict=False)
        differences = [abs(a["loss"] / b["loss"] - 1) for a, b in pairs]
        stage.found["resumed"] = {"largest": max(differences), "bitwise": not any(differences)}


def collectives(stage: Stage) -> str:
    """Form a group of one rank, as every run has it: NCCL on a GPU, with DDP around a layer."""
    backend = "nccl" if stage.cuda else "gloo"
    store = distributed.TCPStore("127.0.0.1", 0, 1, True)
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8).to(stage.device))
        layer(torch.ones(2, 8, device=stage.device)).sum().backward()
        x = torch.ones(4, device=stage.device)
        distributed.all_reduce(x)
        parts = [torch.empty_like(x)]
        distributed.all_gather(parts, x)
        stage.synchronize()
        return f"{backend}, 1 rank: sum {x.sum().item():g} of 4, DDP done"
    finally:
        distributed.destroy_process_group()


def table(found: dict) -> list[str]:
    """Format the runs and the numbers."""
    head = ["run", "exit", "steps", "loss, first fifth", "last fifth", "skipped", "s"]
    rows = []
    for name, r in found.get("runs", {}).items():
        losses = [f"{r[k]:.4g}" if k in r else "" for k in ("first", "last")]
        rows.append([name, r["exit"], r["steps"], *losses, r.get("skipped", ""), r["seconds"]])
    lines = markdown(head, rows)
    lines += [f"\n{n}:\n{r['output']}" for n, r in found.get("runs", {}).items() if "output" in r]
    lines += ["", f"stopped by SIGTERM: {found.get('stopped')}; then resumed, "]
    lines[-1] += f"against the run that was not stopped: {found.get('resumed')}"
    return [*lines, f"collectives: {found.get('collectives')}", "", *numbers.table(found)]

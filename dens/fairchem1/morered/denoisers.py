"""Checkpoints as denoisers: MoreRed, a pair of networks, and DeNS told that the forces are zero."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from dens.denoising.config import DeNSConfig, parse_config
from dens.denoising.corruption import set_fields
from dens.fairchem1.checkpoints.layouts import Checkpoint, read
from dens.fairchem1.checkpoints.model_sections import build
from dens.fairchem1.checkpoints.state import trained_elements
from dens.fairchem1.config.methods.morered import parse_settings_of, predicted_by
from dens.fairchem1.config.translate import is_foreign, translate_optim
from dens.noise_levels import NoiseLevels
from dens.relax.config import Defaults
from dens.relax.objective import mean_over_free
from dens.relax.structures import Denoised, Structures, centre

# Å; a DeNS model's noise has any size: these levels only count it, finer than it is known
_COUNTED = NoiseLevels.geometric(0.002, 2.0, 400)


class Network:
    """A trained network that is asked about structures, on the CPU or a GPU.

    Args:
        model: a hydra model with a backbone of dens, which is used as it is.
        seed: of the random frames of edges, on which the last digits of a result depend.
        elements: the atomic numbers that were trained; None: not known.
    """

    def __init__(
        self, model: nn.Module, seed: int = 0, elements: Sequence[int] | None = None
    ) -> None:
        backbone = model.backbone
        self.model, self.seed, self.elements = model, seed, elements
        self.periodic: bool = backbone.use_pbc
        self.cutoff: float = backbone.cutoff
        self.n_numbers = len(backbone.sphere_embedding.weight)

    @classmethod
    def of_checkpoint(
        cls, checkpoint: Checkpoint, where: str, device: torch.device, seed: int = 0
    ) -> Network:
        """Build the network of a checkpoint in evaluation mode.

        Args:
            checkpoint: the model and its weights.
            where: the name of its file, for errors.
            device: where to run it.
            seed: see the class.

        Raises:
            ValueError: the checkpoint holds no config.
        """
        if checkpoint.model is None:
            raise ValueError(f"{where} holds no config, without which its model cannot be built")
        model: nn.Module = build(copy.deepcopy(checkpoint.model))
        model.load_state_dict(checkpoint.weights, strict=False)
        return cls(model.to(device).eval(), seed, trained_elements(checkpoint.content))

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def __call__(self, batch: Structures, **fields: Tensor) -> tuple[dict[str, Tensor], Data]:
        """Compute outputs for a batch with further fields, of atoms or structures.

        Returns:
            The outputs by name, and the batch that the network read.
        """
        data = self.as_data(batch)
        for name, value in fields.items():
            data[name] = value.to(self.device)
        return self.ask(data), data

    def ask(self, data: Data) -> dict[str, Tensor]:
        """Compute the outputs for a batch, the same ones every time."""
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(gpus):
            torch.manual_seed(self.seed)
            return self.model(data)

    def as_data(self, batch: Structures) -> Data:
        """Convert a batch to what fairchem's models read.

        For a model of periodic structures positions are within the cell, and an open structure has
        a box so large that none of its atoms sees an image.
        """
        pos, cell = batch.pos, batch.cell
        if self.periodic:
            pos = _wrap(batch)
            size = 2 * self.cutoff + 2 * pos.abs().max()
            box = size * torch.eye(3, dtype=cell.dtype)
            cell = torch.where(batch.pbc.all(1)[:, None, None], cell, box)
        data = Data(
            pos=pos.float(),
            atomic_numbers=batch.atomic_numbers,
            natoms=batch.natoms,
            batch=batch.batch,
            cell=cell.float(),
            pbc=batch.pbc | self.periodic,
            fixed=batch.fixed.long(),
            tags=torch.zeros_like(batch.atomic_numbers),
        )
        return data.to(self.device)


def _wrap(batch: Structures) -> Tensor:
    """Move atoms of periodic structures into the cell, in float64: float32 loses digits outside."""
    periodic = batch.pbc.all(1)
    cell = torch.where(periodic[:, None, None], batch.cell, torch.eye(3, dtype=batch.cell.dtype))
    fractions = torch.einsum("ij,ijk->ik", batch.pos, torch.linalg.inv(cell)[batch.batch])
    shift = torch.einsum("ij,ijk->ik", fractions.floor(), cell[batch.batch])
    return torch.where(periodic[batch.batch][:, None], batch.pos - shift, batch.pos)


class NetworkDenoiser:
    """Base of denoisers that ask a network; its limits decide which structures can be relaxed."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.elements, self.n_numbers = network.elements, network.n_numbers
        self.cutoff, self.periodic = network.cutoff, network.periodic


class MoreRedDenoiser(NetworkDenoiser):
    """MoreRed JT, or the noise and time networks of AS and ITP, as a denoiser.

    Args:
        network: with a :class:`~dens.fairchem1.morered.heads.MoreRedHead`.
        levels: those of its training.
        time_network: predicts the level, where ``network`` is told it.
    """

    def __init__(
        self, network: Network, levels: NoiseLevels, time_network: Network | None = None
    ) -> None:
        super().__init__(network)
        self.levels, self.time_network = levels, time_network

    def __call__(self, batch: Structures, level: Tensor | None) -> Denoised:
        if level is None and self.time_network is not None:
            out, data = self.time_network(batch)
            level = self._found(out, data)
        told = {}
        if level is not None:
            level = level.to(self.network.device)
            told["told_time"] = self.levels.tau(level).float()[batch.batch.to(level.device)]
        out, data = self.network(batch, **told)
        found = self._found(out, data) if level is None else level
        return Denoised(out["noise"].double(), found)

    def _found(self, out: dict[str, Tensor], data: Data) -> Tensor:
        return self.levels.index_of(mean_over_free(out["time"].double().view(-1), data))


class ZeroForceDenoiser(NetworkDenoiser):
    r"""DeNS model told that the forces are zero, as a denoiser.

    DeNS predicts the noise of corrupted atoms given the forces of the original structure. With
    forces of zero the original is a minimum, so the answer is the way to it: a learned Newton step
    :math:`H^{-1} F`, without a training of its own. The level is counted from its length.

    Args:
        network: with force encoding and a noise head.
        dens: the settings of its training.
    """

    levels = _COUNTED
    # Undamped, a Newton step, structures are nearer to their minima after as many calls. It is a
    # cautious one, shorter than the way: small noise is not yet none. See docs/relaxation.md.
    defaults = Defaults(damping=0.0, relaxed=0.008)

    def __init__(self, network: Network, dens: DeNSConfig) -> None:
        super().__init__(network)
        self.dens = dens
        self._told = bool(network.model.backbone.sigma_encoding)

    def __call__(self, batch: Structures, level: Tensor | None) -> Denoised:
        data = self.network.as_data(batch)
        sigmas = self.dens.sigmas
        middle = (sigmas[0] * sigmas[-1]) ** 0.5
        sigma = torch.full_like(data.natoms, middle, dtype=data.pos.dtype)
        moved = self._ask(data, sigma)
        if self._told:  # again, with the level that was found
            sigma = _rms(moved, data).clamp(sigmas[0], sigmas[-1]).to(sigma.dtype)
            moved = self._ask(data, sigma)
        if level is None:
            level = self.levels.nearest(_rms(moved, data).cpu()).to(self.network.device)
        unit = self.levels.sigma(level, torch.float64)[data.batch][:, None]
        return Denoised(moved / unit, level)

    def _ask(self, data: Data, sigma: Tensor) -> Tensor:
        """Return the noise of the free atoms, (n_atoms, 3), Å."""
        free = data.fixed == 0
        fields = {
            "noise": torch.zeros_like(data.pos),
            "noise_mask": free,
            "sigma": sigma,
            "noise_forces": torch.zeros_like(data.pos),
        }
        set_fields(data, fields)
        noise = self.network.ask(data)["noise"].double() * self.dens.noise_scale
        noise = torch.where(free[:, None], noise, 0)
        return centre(noise, data.batch, data.natoms, data.fixed)


def _rms(moved: Tensor, data: Data) -> Tensor:
    """Return the root mean square of the components over free atoms: (n_structures,), Å."""
    return (mean_over_free(moved.square().sum(1), data) / 3).sqrt()


def load_denoiser(
    path: str | Path,
    *,
    time_path: str | Path | None = None,
    raw: bool = False,
    cpu: bool = False,
    seed: int = 0,
) -> NetworkDenoiser:
    """Load a checkpoint of MoreRed, or of DeNS, as a denoiser.

    Args:
        path: a checkpoint of dens.
        time_path: that of a time network, for a noise network that is told the level.
        raw: use the weights as trained; by default their moving average, where there is one.
        cpu: run on the CPU even if there is a GPU.
        seed: of the random frames of edges.

    Raises:
        ValueError: a file cannot be read, or holds a model of another kind.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    checkpoint = read(path, raw)
    optim = (checkpoint.content.get("config") or {}).get("optim") or {}
    predicted = predicted_by(checkpoint.model or {})
    if "noise" in predicted:
        time_network = None
        if time_path is not None:
            time_network = _time_network(time_path, optim, raw, device, seed)
        if ("time" in predicted) == (time_network is not None):
            has = "predicts the level itself" if time_network else "is told the level"
            need = "no time checkpoint" if time_network else "a time checkpoint"
            raise ValueError(f"{path} {has}: it needs {need} (--time-checkpoint)")
        network = Network.of_checkpoint(checkpoint, str(path), device, seed)
        return MoreRedDenoiser(network, parse_settings_of(optim).levels, time_network)
    if time_path is not None:
        raise ValueError(
            f"{path} is no noise network of MoreRed, so {time_path} would be ignored "
            "(--time-checkpoint)"
        )
    if "noise" not in checkpoint.heads.values() or predicted:
        kind = "a time network" if predicted else "a model without a noise head"
        raise ValueError(
            f"{path} holds {kind}: relaxation by denoising needs a model of MoreRed "
            "(dens.MoreRedHead) or of DeNS"
        )
    dens = translate_optim(optim)["dens"] if is_foreign(optim) else optim.get("dens")
    settings = parse_config(dens, f"{path}: optim.dens")
    return ZeroForceDenoiser(Network.of_checkpoint(checkpoint, str(path), device, seed), settings)


def _time_network(
    path: str | Path, optim: dict[str, Any], raw: bool, device: torch.device, seed: int
) -> Network:
    checkpoint = read(path, raw)
    other = (checkpoint.content.get("config") or {}).get("optim") or {}
    if "time" not in predicted_by(checkpoint.model or {}):
        raise ValueError(f"{path} predicts no level of noise: expected one with a dens.TimeHead")
    if parse_settings_of(other).levels != parse_settings_of(optim).levels:
        raise ValueError(f"{path} was trained with other noise levels (optim.morered)")
    return Network.of_checkpoint(checkpoint, str(path), device, seed)

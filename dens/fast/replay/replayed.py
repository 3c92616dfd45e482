"""A differentiable function that runs as CUDA graphs, one for each set of shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dens.fast.replay.capture import Capture


class Replays:
    """Captures of one part of a model by the shapes of its arguments.

    All share their memory, as one is in use at a time: a forward pass must be followed by its
    backward pass before the next forward pass.

    Args:
        name: of the part and its setting, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.passes = 0  # forward passes so far
        self._captures: dict[Hashable, Capture] = {}
        self._addresses: list[int] = []
        self._buffers: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        return len(self._captures)

    def __deepcopy__(self, memo: dict) -> Replays:
        return Replays(self.name)  # a copied model has other parameters

    def __reduce__(self) -> tuple:
        return Replays, (self.name,)

    def __call__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        key: Hashable = (),
    ) -> Tensor:
        """Return ``function(parameters, *inputs)``, differentiable in both.

        Args:
            function: that of the same key, in every call.
            key: what the function depends on besides the inputs' shapes and types.

        Raises:
            RuntimeError: the function cannot be recorded.
        """
        addresses = [p.data_ptr() for p in parameters.values()]
        if addresses != self._addresses:  # the captures read parameters where they were
            self._captures.clear()
            self._addresses = addresses
        device = inputs[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        shapes = tuple((t.shape, t.dtype, t.requires_grad) for t in inputs)
        key = (key, shapes, autocast, tuple(p.requires_grad for p in parameters.values()))
        if key not in self._captures:
            self._captures[key] = self._capture(_without_cache(function), inputs, parameters)
        tensors = *inputs, *parameters.values()
        return _Replay.apply(self, self._captures[key], len(inputs), *tensors)

    def _capture(self, function, inputs, parameters) -> Capture:
        places = [self._place(number, value) for number, value in enumerate(inputs)]
        beside = next(iter(self._captures.values()), None)
        try:
            return Capture(function, places, parameters, beside)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "")
            raise RuntimeError(f"{self.name}: cannot record a CUDA graph: {reason}") from error

    def _place(self, number: int, value: Tensor) -> Tensor:
        """Copy an input to memory that all captures share, as far as it is large enough."""
        buffer = self._buffers.get((number, value.dtype))
        if buffer is None or len(buffer) < value.numel():
            buffer = value.new_empty(value.numel())
            self._buffers[number, value.dtype] = buffer
        place = buffer[: value.numel()].view(value.shape)
        return place.copy_(value.detach()).requires_grad_(value.requires_grad)


def _without_cache(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let autocast round a parameter at each use, not once for all: the next step has another."""

    def run(parameters: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        device = inputs[0].device.type
        settings: dict[str, Any] = {"enabled": torch.is_autocast_enabled(device)}
        settings["dtype"] = torch.get_autocast_dtype(device)
        with torch.autocast(device, cache_enabled=False, **settings):
            return function(parameters, *inputs)

    return run


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, replays: Replays, capture: Capture, n_inputs: int, *tensors: Tensor):
        for place, value in zip(capture.inputs, tensors[:n_inputs], strict=True):
            place.detach().copy_(value)
        capture.forward()
        replays.passes += 1
        ctx.replays, ctx.capture, ctx.number = replays, capture, replays.passes
        return capture.output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        capture, replays = ctx.capture, ctx.replays
        if ctx.number != replays.passes:
            raise RuntimeError(
                f"{replays.name}: another forward pass came before this backward pass, and has "
                "written over what it needs"
            )
        capture.grad_output.copy_(grad)
        return None, None, None, *capture.backward()

"""Stand-in for CUDA graphs that runs the function again, where there is no GPU."""

from __future__ import annotations

import torch


class LiveCapture:
    """The interface of :class:`dens.fast.replay.capture.Capture`, without a recording.

    Its memory is overwritten by each pass, as that of CUDA graphs is.
    """

    def __init__(self, function, inputs, parameters, beside=None) -> None:
        self.inputs = list(inputs)
        self.function, self.parameters, self.beside = function, parameters, beside
        with torch.no_grad():
            self.output = function(parameters, *self.inputs)
        self.grad_output = torch.zeros_like(self.output)

    def forward(self) -> None:
        with torch.enable_grad():
            self.live = self.function(self.parameters, *self.inputs)
        self.output.copy_(self.live.detach())

    def backward(self) -> list:
        tensors = [*self.inputs, *self.parameters.values()]
        wanted = [t for t in tensors if t.requires_grad]
        asked = {"allow_unused": True, "retain_graph": True}
        found = iter(torch.autograd.grad(self.live, wanted, self.grad_output, **asked))
        return [next(found) if t.requires_grad else None for t in tensors]

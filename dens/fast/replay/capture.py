"""Forward and backward pass of a function as two CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor


class Capture:
    """A function of tensors and parameters, recorded once and launched as one from then on.

    It reads its inputs where they were when it was recorded, and leaves its results in the same
    place each time: the next launch writes over them.

    Args:
        function: of parameters by name and of inputs, one tensor; it must not wait for the device.
        inputs: where the inputs of each launch will be, on a GPU, with values to record with.
        parameters: what is read where it is at every launch.
        beside: another capture with the same parameters, whose memory this one shares: only one of
            them may be between its forward pass and the end of its backward pass.

    Attributes:
        inputs: memory of the inputs.
        output: memory of the result.
        grad_output: memory of the result's gradient.
    """

    warm_ups = 3  # compile kernels, and let libraries allocate what they keep

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        beside: Capture | None = None,
    ) -> None:
        self.inputs = list(inputs)
        # others than the model's, whose gradients belong to the stream of its other passes
        self._parameters = {
            name: p.detach().requires_grad_(p.requires_grad) for name, p in parameters.items()
        }
        self._function = function
        self._pool = beside._pool if beside else torch.cuda.graph_pool_handle()
        learnt = [p for p in self._parameters.values() if p.requires_grad]
        numbers = sum(p.numel() for p in learnt)
        self._flat = beside._flat if beside else learnt[0].new_empty(numbers)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        device = self.inputs[0].device
        state = torch.cuda.get_rng_state(device)
        self._warm_up(device)
        with self._recording(self._forward):
            output = function(self._parameters, *self.inputs)
        with self._recording(self._backward):
            self._of_inputs, self._shapes = self._compute_gradients(output)
        self.output = output.detach()
        torch.cuda.set_rng_state(state, device)

    def forward(self) -> None:
        """Compute ``output`` from ``inputs``."""
        self._random = torch.cuda.get_rng_state(self.output.device)
        self._forward.replay()
        self._spent = False

    def _forward_again(self) -> None:
        device = self.output.device
        state = torch.cuda.get_rng_state(device)
        torch.cuda.set_rng_state(self._random, device)
        self._forward.replay()
        torch.cuda.set_rng_state(state, device)

    def backward(self) -> list[Tensor | None]:
        """Compute gradients from ``grad_output``, for the forward pass that was the last one.

        A backward pass uses up what the forward pass has left in memory, so a second one computes
        the forward pass again, from the same random numbers.

        Returns:
            those of the inputs, then those of the parameters; None for what has no effect, or
            needs none.
        """
        if self._spent:
            self._forward_again()
        self._backward.replay()
        self._spent = True
        sizes = [shape.numel() for shape in self._shapes if shape is not None]
        # a copy, since a parameter may keep its part as its gradient
        parts = iter(self._flat[: sum(sizes)].clone().split(sizes))
        of_inputs = [None if g is None else g.clone() for g in self._of_inputs]
        return of_inputs + [None if s is None else next(parts).view(s) for s in self._shapes]

    def _recording(self, graph: torch.cuda.CUDAGraph) -> AbstractContextManager:
        # other threads, as those that pin batches, may use the device meanwhile
        return torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")

    def _warm_up(self, device: torch.device) -> None:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(self.warm_ups):
                output = self._function(self._parameters, *self.inputs)
                self.grad_output = torch.zeros_like(output)
                self._compute_gradients(output)
        torch.cuda.current_stream(device).wait_stream(stream)

    def _compute_gradients(self, output: Tensor) -> tuple[list, list]:
        """Compute all gradients, and gather those of parameters in memory that captures share.

        Returns:
            gradients of the inputs, and shapes of those of the parameters; None as above.
        """
        tensors = [*self.inputs, *self._parameters.values()]
        wanted = [t for t in tensors if t.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, self.grad_output, allow_unused=True))
        grads = [next(found) if t.requires_grad else None for t in tensors]
        of_inputs, of_parameters = grads[: len(self.inputs)], grads[len(self.inputs) :]
        parts = [g.reshape(-1) for g in of_parameters if g is not None]
        torch.cat(parts, out=self._flat[: sum(map(len, parts))])
        return of_inputs, [None if g is None else g.shape for g in of_parameters]

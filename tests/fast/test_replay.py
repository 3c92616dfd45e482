"""Test functions that run as CUDA graphs: shapes, gradients, order of passes, padding."""

import copy

import pytest
import torch
from helpers.live_capture import LiveCapture
from torch.func import functional_call

from dens.fast.replay import replayed
from dens.fast.replay.padding import pad_edges, pad_rows, padded_size
from dens.fast.replay.replayed import Replays

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(replayed, "Capture", LiveCapture)


class Layers(torch.nn.Module):
    """Two layers, one parameter without effect and one that is fixed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.unused = torch.nn.Parameter(torch.ones(5))
        self.second.bias.requires_grad_(False)

    def forward(self, x, y):
        return self.second(torch.tanh(self.first(x))) + y


def calling(model):
    return lambda parameters, *inputs: functional_call(model, dict(parameters), inputs)


def compare(model, replays, n: int, times: int = 1) -> None:
    """Compare a step of a function as it is with one that replays it."""
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator)
    weight = torch.randn(n, 2, generator=generator).to(DEVICE)
    found = []
    for replay in (False, True):
        inputs = x.to(DEVICE).requires_grad_(), y.to(DEVICE)
        model.zero_grad()
        for _ in range(times):
            out = (
                replays(calling(model), inputs, dict(model.named_parameters()))
                if replay
                else model(*inputs)
            )
            (out * weight).sum().backward()
        grads = [p.grad for p in model.parameters()]
        found.append([out, inputs[0].grad, *(None if g is None else g.clone() for g in grads)])
    for expected, other in zip(*found, strict=True):
        assert (expected is None) == (other is None)
        if expected is not None:
            assert torch.allclose(expected, other, rtol=1e-5, atol=1e-6)


def test_results_gradients_and_one_capture_for_each_shape():
    model, replays = Layers().to(DEVICE), Replays("here")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for n in (4, 6, 4, 4, 6):
        compare(model, replays, n)
        optimizer.step()  # parameters change in place, and the captures see it
    assert len(replays) == 2


def test_gradients_add_up():
    compare(Layers().to(DEVICE), Replays("here"), 4, times=3)


def test_gradients_that_were_kept_are_not_written_over():
    """``zero_grad(set_to_none=False)`` keeps the tensors of the last step's gradients."""
    model, replays = Layers().to(DEVICE), Replays("here")
    x, y = torch.ones(4, 3, device=DEVICE), torch.ones(4, 2, device=DEVICE)
    for _ in range(2):
        model.zero_grad(set_to_none=False)
        replays(calling(model), (x, y), dict(model.named_parameters())).sum().backward()
    expected = Layers().to(DEVICE)
    expected(x, y).sum().backward()
    assert torch.allclose(model.first.weight.grad, expected.first.weight.grad, rtol=1e-5)


def test_several_backward_passes_after_one_forward_pass():
    """As for the gradients of single terms of a loss: dropout is that of the forward pass."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)), torch.nn.Dropout())
    model, replays = model.to(DEVICE), Replays("here")
    out = replays(
        calling(model), [torch.randn(64, 64, device=DEVICE)], dict(model.named_parameters())
    )
    expected = (out != 0).sum(0)  # the gradient of a sum by the last bias, but for dropout's scale
    for _ in range(3):
        (bias,) = torch.autograd.grad(out.sum(), [model[3].bias], retain_graph=True)
        assert torch.allclose(bias, 2.0 * expected)


def test_parameters_that_moved_are_recorded_again():
    model, replays = Layers().to(DEVICE), Replays("here")
    compare(model, replays, 4)
    model.first.weight.data = model.first.weight.data * 2
    compare(model, replays, 4)
    assert len(replays) == 1


def test_autocast():
    model, replays = Layers().to(DEVICE), Replays("here")
    x, y = torch.ones(4, 3, device=DEVICE), torch.ones(4, 2, device=DEVICE)
    args = calling(model), (x, y), dict(model.named_parameters())
    single = replays(*args)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected, rounded = model(x, y), replays(*args)
        assert torch.allclose(rounded, expected, rtol=1e-2)
        model.first.weight.data.mul_(2)  # autocast keeps rounded parameters: those of this step
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
            expected = model(x, y)
        assert torch.allclose(replays(*args), expected, rtol=1e-2)
    assert not torch.equal(single, rounded)
    assert len(replays) == 2


def test_a_second_forward_pass_before_the_backward_pass_is_refused():
    model, replays = Layers().to(DEVICE), Replays("model.backbone.cuda_graphs")
    x, y = torch.ones(4, 3, device=DEVICE), torch.ones(4, 2, device=DEVICE)
    first = replays(calling(model), (x, y), dict(model.named_parameters()))
    replays(calling(model), (x[:2], y[:2]), dict(model.named_parameters()))
    with pytest.raises(RuntimeError, match="cuda_graphs: another forward pass came before this"):
        first.sum().backward()


def test_what_cannot_be_recorded_is_named(monkeypatch):
    def fails(*args):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(replayed, "Capture", fails)
    model = Layers()
    with pytest.raises(
        RuntimeError, match=r"^here: cannot record a CUDA graph: operation not .*ng$"
    ):
        Replays("here")(
            calling(model),
            (torch.ones(4, 3), torch.ones(4, 2)),
            dict(model.named_parameters()),
        )


def test_captures_share_the_memory_of_their_inputs():
    model, replays = Layers().to(DEVICE), Replays("here")
    for n in (6, 4, 5, 6, 4, 5):
        compare(model, replays, n)
    captures = replays._captures.values()
    assert len({place.data_ptr() for capture in captures for place in capture.inputs}) == 2
    compare(model, replays, 8)  # larger than before: new memory
    for n in (4, 8, 6):
        compare(model, replays, n)


def test_a_copy_records_its_own():
    model, replays = Layers().to(DEVICE), Replays("here")
    compare(model, replays, 4)
    assert len(copy.deepcopy(replays)) == 0


@pytest.mark.parametrize("n", [1, 15, 16, 17, 127, 129, 1000, 1201, 24000, 10**6])
def test_padded_sizes(n):
    size = padded_size(n)
    assert size >= n
    assert size % 16 == 0
    assert size - n < max(16, n / 8)
    assert padded_size(size) == size


def test_there_are_eight_sizes_up_to_the_double():
    assert len({padded_size(n) for n in range(1025, 2049)}) == 8


@pytest.mark.parametrize(("extra", "atoms"), [(0, 1), (3, 5), (7, 3), (5, 1)])
def test_padded_edges_are_among_new_atoms_and_sorted(extra, atoms):
    edges = torch.tensor([[1, 0, 2], [0, 1, 1]])
    padded = pad_edges(edges, 3, 3 + extra, 3 + atoms)
    assert torch.equal(padded[:, :3], edges)
    source, target = padded[:, 3:]
    assert torch.equal(source, target)
    assert torch.equal(target, target.sort().values)
    counts = torch.bincount(target, minlength=3 + atoms)[3:]
    assert len(counts) == atoms
    assert counts.sum() == extra
    assert counts.max() - counts.min() <= 1


def test_padded_rows_are_zero():
    rows = torch.ones(2, 3, 4)
    padded = pad_rows(rows, 5)
    assert torch.equal(padded[:2], rows)
    assert padded.shape == (5, 3, 4)
    assert not padded[2:].any()
    assert torch.equal(pad_rows(torch.ones(2), 3), torch.tensor([1.0, 1.0, 0.0]))

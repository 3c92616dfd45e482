"""The allow-list of pickles: they build tensors, arrays and containers, and run no code."""

from __future__ import annotations

import io
import pickle
import re
import time
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from helpers.hostile import HOSTILE, RUNS, Call, payload, write_checkpoint
from torch_geometric.data import Data

from dens.safe.checkpoints import safe_load
from dens.safe.pickles import ALLOWED, BadRecord, ForbiddenClass, load_record, loads

pytestmark = pytest.mark.usefixtures("untrusting")


def in_protocol_2(name: str) -> str:
    """Return the name in Python 2, which pickles of protocol 2 contain."""
    return name.replace("builtins.", "__builtin__.").replace("subprocess.", "commands.")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_records_run_nothing(sentinel, name, protocol):
    with pytest.raises(ForbiddenClass) as error:
        loads(payload(name, sentinel, protocol))
    expected = HOSTILE[name][1]
    if protocol == 2:
        expected = in_protocol_2(expected)
    assert str(error.value) == (
        f"asks for {expected}, which such data do not need; none of its code was run. "
        "If you trust where it comes from: DENS_TRUST_FILES=1"
    )
    assert not sentinel.exists()


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
@pytest.mark.parametrize("name", HOSTILE)
def test_checkpoints_run_nothing(sentinel, tmp_path, name, zipped):
    path = tmp_path / "file.pt"
    write_checkpoint(path, payload(name, sentinel, protocol=2), zipped)
    with pytest.raises(ValueError, match="which a checkpoint does not need; none of its") as error:
        safe_load(path)
    expected = in_protocol_2(HOSTILE[name][-1]).removeprefix("__builtin__.")
    # versions of torch name the module of what is built in differently
    assert re.search(
        rf" asks for ((__)?builtins?(__)?\.)?{re.escape(expected)}, ", str(error.value)
    )
    assert not sentinel.exists()


@pytest.mark.parametrize("name", RUNS)
def test_these_pickles_are_hostile(sentinel, monkeypatch, name):
    """Without the restriction these pickles do run code, so the tests above are not empty."""
    monkeypatch.setenv("DENS_TRUST_FILES", "1")
    loads(payload(name, sentinel))
    until = time.monotonic() + 10
    while not sentinel.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert sentinel.exists()


def test_a_storage_may_be_written_in_another_way():
    """Storages written in another way are read by PyTorch's restricted reader."""
    file = io.BytesIO()
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.arange(6.0).untyped_storage(), dtype=torch.float32, _internal=True
    )
    torch.save(storage, file)
    storage = Call(torch.storage._load_from_bytes, file.getvalue())
    made = Call(torch._utils._rebuild_tensor_v2, storage, 0, (2, 3), (3, 1), False, OrderedDict())
    assert torch.equal(loads(pickle.dumps(Data(pos=made))).pos, torch.arange(6.0).view(2, 3))


def full_record() -> Data:
    """Make a record with every kind of field that is allowed."""
    rng = np.random.default_rng(0)
    return Data(
        pos=torch.randn(6, 3)[::2],
        fixed=torch.zeros(1).expand(3),
        nothing=torch.zeros(0, 3),
        number=torch.tensor(2.5),
        **{str(kind): torch.ones(2).to(kind) for kind in TORCH_TYPES},
        **{f"numpy {kind}": np.ones(1, kind)[0] for kind in NUMPY_TYPES},
        **{f"array {kind}": np.asarray(rng.uniform(size=(2, 3)), kind) for kind in NUMPY_TYPES},
        by_columns=np.asfortranarray(rng.uniform(size=(2, 3))),
        big_endian=np.arange(3, dtype=">i4"),
        no_rows=np.zeros((0, 3)),
        texts=np.array(["ab", "c"]),
        plain=[1, 2.5, "text", b"bytes", None, True, 1j, (1, {2: 3}), {4}, frozenset({5})],
        mappings={"a": OrderedDict(b=1), "c": defaultdict(list, d=[2])},
        y=-1.5,
        sid="a",
    )


TORCH_TYPES = [
    *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.bool),
]
NUMPY_TYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "u1", "?", "c16"]


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
        assert torch.equal(found, expected)
    elif isinstance(found, np.ndarray):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_records_are_read_as_pickle_reads_them(protocol):
    pickled = pickle.dumps(full_record(), protocol)
    found, expected = loads(pickled), pickle.loads(pickled)
    assert type(found) is Data
    assert found.keys() == expected.keys()
    for name in found.to_dict():
        assert_same(found[name], expected[name])


def old_record() -> bytes:
    """Pickle a ``Data`` as PyTorch Geometric 1.x did, with its fields in the object itself."""
    data = Data.__new__(Data)
    vars(data).update(x=None, edge_index=None, edge_attr=None, y=-1.5, norm=None, face=None)
    vars(data).update(pos=torch.ones(2, 3), atomic_numbers=torch.tensor([8.0, 29.0]), natoms=2)
    return pickle.dumps(data, protocol=2)


@pytest.mark.parametrize("trust", ["0", "1"])
def test_records_of_old_versions(monkeypatch, trust):
    monkeypatch.setenv("DENS_TRUST_FILES", trust)
    pickled = old_record()
    assert b"_store" not in pickled
    found = load_record(pickled)
    assert sorted(found.keys()) == ["atomic_numbers", "natoms", "pos", "y"]
    assert torch.equal(found.pos, torch.ones(2, 3))
    assert found.num_nodes == 2


DAMAGED = {
    "missing": (None, "there is no record under this key"),
    "empty": (b"", "not a pickled record: IndexError"),
    "text": (b"damaged", "not a pickled record: "),
    "cut off": (pickle.dumps(full_record())[:-300], "not a pickled record: "),
    "a number": (pickle.dumps(3), "expected a Data of PyG, got int"),
    "Data without fields": (
        b"\x80\x02ctorch_geometric.data.data\nData\n)\x81K\x01b.",
        "a Data without",
    ),
    "not a storage": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(I3\nt(I1\nttR.",
        "a tensor has a int for its storage",
    ),
    "numbers an object": (b"\x80\x02Nr\x00\x00\x00\x80.", "it numbers an object 2147483648"),
    "numbers an object in text": (b"Np99999999999\n.", "it numbers an object 99999999999"),
}


@pytest.mark.parametrize(("pickled", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_records(pickled, message):
    with pytest.raises(BadRecord, match=message):
        load_record(pickled)


class Forged:
    """Tensor whose pickle claims other sizes than its storage has, or sets another state."""

    def __init__(self, offset, size, stride, *state):
        self.args, self.state = (offset, size, stride, False, OrderedDict()), state

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (torch.ones(6).storage(), *self.args), *self.state


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    "sizes",
    [(0, (10**9, 3), (3, 1)), (4, (3,), (1,)), (-1, (3,), (1,)), (0, (3,), (-1,)), (0, (2,), (6,))],
)
def test_tensors_stay_within_their_storage(sizes):
    with pytest.raises(BadRecord, match=r"is larger than what is stored for it"):
        loads(pickle.dumps(Data(pos=Forged(*sizes))))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_do_not_grow_by_their_state():
    state = (torch.ones(6), 0, (10**4,), (1,))
    with pytest.raises(BadRecord, match="field pos is larger than what is stored for it"):
        loads(pickle.dumps(Data(pos=Forged(0, (6,), (1,), state))))


def test_a_storage_of_a_wrong_length():
    pickled = pickle.dumps(Data(pos=torch.ones(7)), 4)
    count = (7).to_bytes(8, "little")
    assert count in pickled
    with pytest.raises(BadRecord, match=r"a tensor of 9 numbers \(torch.float32\) is stored in 28"):
        loads(pickled.replace(count, (9).to_bytes(8, "little")))


@pytest.mark.parametrize("module_name", ALLOWED, ids=".".join)
def test_what_may_be_named_cannot_be_changed(module_name):
    """A pickle may set attributes of objects; those of torch and numpy stay unchanged."""
    module, name = module_name
    named = f"c{module}\n{name}\n".encode()
    for state in (b"}X\x01\x00\x00\x00xK\x01s", b"N}X\x01\x00\x00\x00xK\x01s\x86"):
        with pytest.raises(BadRecord):
            loads(b"\x80\x02" + named + state + b"b.")
    assert not hasattr(ALLOWED[module_name], "x")


def test_numpys_own_types_cannot_be_changed():
    state = b"(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    loads(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x89\x87R" + state + b".")
    assert np.dtype("f8").isnative

"""Fuzz tests: any input gives a valid result or one clear error.

``DENS_FUZZ=5000 pytest tests/test_fuzz.py`` tries so many cases of each, at random; without it, the
same 200 every time.
"""

from __future__ import annotations

import math
import os
import pickle

import numpy as np
import pytest
import torch
from helpers.structures import make_structure
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

import dens.fairchem1  # noqa: F401  (before fairchem: it supplies what fairchem imports)
from dens.data.checked import CheckedRecords
from dens.data.store.records import pickle_record
from dens.denoising.config import DeNSConfig, parse_config
from dens.denoising.corruption import (
    corrupt,
    eligible_structures,
    sample_draws,
    sample_draws_by_structure,
)
from dens.fairchem1.data.safe_lmdb import LmdbDataset
from dens.random import make_generator
from dens.safe.checkpoints import safe_load
from dens.safe.pickles import BadRecord
from dens.settings import ConfigError

LONG = "DENS_FUZZ" in os.environ
settings.register_profile(
    "dens",
    max_examples=int(os.environ.get("DENS_FUZZ", "200")),
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
fuzz = settings.get_profile("dens")


pytestmark = pytest.mark.usefixtures("untrusting")


def result_or_error(function, kind: type[Exception]) -> tuple:
    """Return the result of a function, or the message of its error of this kind."""
    try:
        return function(), None
    except kind as error:
        return None, str(error)


# ---- settings --------------------------------------------------------------------------------

KEYS = tuple(DeNSConfig.model_fields)
NUMBERS = st.floats() | st.integers() | st.sampled_from([0, 1, -1, 0.5, 0.1, 2**64, 10**400])
WORDS = ["joint", "separate", "structure", "batch", "if_marked", "1e-1", "null", "yes", ""]
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(WORDS)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=4) | st.dates(),  # YAML makes dates too
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(KEYS) | SCALARS | st.sampled_from(["sigm", "prob ", "optim.dens"])
GOOD = {
    "prob": st.floats(0, 1),
    "denoising_coefficient": st.floats(0, 100),
    "sigma": st.none() | st.floats(0, 1),
    "sigma_low": st.floats(0, 1),
    "sigma_high": st.floats(0, 1),
    "num_sigmas": st.integers(0, 9),
    "corrupt_ratio": st.none() | st.floats(0, 1),
}


@fuzz
@given(
    st.fixed_dictionaries({}, optional=GOOD),
    st.dictionaries(NAMES, VALUES, max_size=5) | VALUES,
)
def test_settings(good, others):
    """Parsing gives settings, or an error that names a key in each of its lines."""
    given_settings = {**good, **others} if isinstance(others, dict) else others
    config, message = result_or_error(lambda: parse_config(given_settings), ConfigError)
    if message is not None:
        assert "optim.dens" in message
        return
    assert 0 < config.noise_scale < math.inf
    assert 0 <= config.prob <= 1


# ---- corruption ------------------------------------------------------------------------------

LADDERS = st.fixed_dictionaries(
    {
        "sigma_low": st.floats(1e-3, 0.1),
        "sigma_high": st.floats(0.11, 2),
        "num_sigmas": st.integers(2, 50),
    }
)
SIGMAS = st.fixed_dictionaries({"sigma": st.floats(1e-4, 2)}) | LADDERS
LIMITS = st.none() | st.sampled_from([1e-30, 0.5, 1e3, 1e30])
CONFIGS = st.builds(
    lambda sigmas, ratio, **others: parse_config(
        {**sigmas, **others, "denoising_coefficient": 10, "corrupt_ratio": ratio}
        | ({} if ratio else {"strict_max_ratio": None})
    ),
    sigmas=SIGMAS,
    ratio=st.none() | st.sampled_from([1e-9, 0.3, 0.5, 1.0]),
    prob=st.sampled_from([0.0, 0.5, 1.0]),
    corrupt_fixed_atoms=st.sampled_from([True, False, "only"]),
    granularity=st.sampled_from(["structure", "batch"]),
    exclude_md=st.sampled_from([False, "if_marked"]),
    min_num_atoms=st.none() | st.integers(1, 5),
    strict_max_ratio=st.none() | st.sampled_from([1e-9, 0.5, 1.0]),
    max_force_norm=LIMITS,
    max_mean_force_norm=LIMITS,
    max_stress_norm=LIMITS,
)


@st.composite
def batches(draw) -> dict:
    """Draw structures of any size, empty too, with any forces; all, some or no atoms fixed."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    natoms = torch.tensor(
        draw(st.lists(st.integers(0, 6), min_size=1, max_size=5)), dtype=torch.long
    )
    n_structures, n_atoms = len(natoms), int(natoms.sum())
    generator = make_generator(draw(st.integers(0, 2**32)))

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    scale = draw(st.sampled_from([0.0, 1e-30, 1.0, 1e4, 1e30, math.inf, math.nan]))
    shares = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return {
        "pos": noise(n_atoms, 3) * draw(st.sampled_from([0.0, 1.0, 1e3])),
        "forces": noise(n_atoms, 3) * scale,
        "batch": torch.arange(n_structures).repeat_interleave(natoms),
        "natoms": natoms,
        "fixed": torch.rand(n_atoms, generator=generator) < shares,
        "md": draw(st.none() | st.just(torch.rand(n_structures, generator=generator) < 0.5)),
        "stress": noise(n_structures, 9) * scale,
        "seed": draw(st.integers(0, 2**32)),
    }


@fuzz
@given(CONFIGS, batches(), st.booleans())
def test_corruption(config, given_batch, by_structure):
    note(str(given_batch["natoms"]))
    pos, batch, natoms = (given_batch[name] for name in ("pos", "batch", "natoms"))
    seed, before, fixed = given_batch["seed"], pos.clone(), given_batch["fixed"]
    fields = ("forces", "batch", "natoms", "md", "stress")
    eligible = eligible_structures(config, **{name: given_batch[name] for name in fields})
    if by_structure:
        streams = [make_generator(seed, i) for i in range(len(natoms))]
        draws = sample_draws_by_structure(natoms, streams, make_generator(seed), pos.dtype)
    else:
        draws = sample_draws(natoms, make_generator(seed), pos.dtype)
    found = corrupt(pos, batch, natoms, config, draws, fixed=fixed, eligible=eligible)

    assert torch.equal(pos, before)
    assert found.pos.shape == found.noise.shape == pos.shape
    assert found.pos.dtype == found.noise.dtype == found.sigma.dtype == pos.dtype
    assert found.pos.isfinite().all()
    assert torch.equal(found.pos - pos, found.noise)
    assert (found.noise[~found.noise_mask] == 0).all()
    corrupted = torch.zeros(len(natoms), dtype=torch.bool)
    corrupted[batch[found.noise_mask]] = True
    assert torch.equal(found.sigma > 0, corrupted)
    assert eligible.shape == natoms.shape
    assert not corrupted[~eligible].any()
    if config.corrupt_fixed_atoms is not True:
        assert not found.noise_mask[fixed != (config.corrupt_fixed_atoms == "only")].any()
    if config.prob == 0:
        assert not found.noise_mask.any()
    if config.max_force_norm is not None:
        norms = given_batch["forces"].norm(dim=-1)[found.noise_mask]
        assert (norms <= config.max_force_norm).all()


# ---- records ---------------------------------------------------------------------------------

RECORD = make_structure(np.random.default_rng(0), (2, 2, 2), sid=3)
VALID = [pickle_record(RECORD), *(pickle.dumps(RECORD, protocol) for protocol in (2, 4, 5))]
POSITIONS = st.floats(0, 1, exclude_max=True)
CHANGES = st.one_of(
    st.tuples(st.just("flip"), POSITIONS, st.integers(0, 7)),
    st.tuples(st.just("cut"), POSITIONS, st.just(0)),
    st.tuples(st.just("insert"), POSITIONS, st.binary(min_size=1, max_size=5)),
    st.tuples(st.just("delete"), POSITIONS, st.integers(1, 20)),
    st.tuples(st.just("replace"), POSITIONS, st.binary(min_size=1, max_size=5)),
)


def changed(valid: bytes, changes: list[tuple]) -> bytes:
    content = bytearray(valid)
    for kind, where, what in changes:
        at = int(where * len(content))
        if kind == "flip" and content:
            content[at] ^= 1 << what
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = what
        elif kind == "delete":
            del content[at : at + what]
        elif kind == "replace":
            content[at : at + len(what)] = what
    return bytes(content)


class OneEntry:
    """Fake LMDB environment (and its transaction) with one entry."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def begin(self) -> OneEntry:
        return self

    def get(self, key: bytes) -> bytes:
        return self.content

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    from helpers.trainers import write_dataset

    src = write_dataset(tmp_path_factory.mktemp("fuzz") / "train", n=1)
    return CheckedRecords(LmdbDataset({"src": src}), {"energy": "system", "forces": "atom"})


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is")
@fuzz
@given(st.sampled_from(VALID), st.lists(CHANGES, min_size=1, max_size=4))
def test_records(records, valid, changes):
    """A changed record gives a structure that can be collated, or an error that names the file."""
    records.dataset.envs = [OneEntry(changed(valid, changes))]
    data, message = result_or_error(lambda: records[0], BadRecord)
    if message is not None:
        assert "data.0000.lmdb, record 0 (index 0): " in message
        return
    assert type(data) is Data
    assert len(data.pos) == len(data.atomic_numbers) == len(data.forces) == data.natoms
    assert torch.cat([data.pos, data.forces]).isfinite().all()
    assert len(Batch.from_data_list([data, data]).pos) == 2 * data.natoms


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is")
@fuzz
@given(valid=st.booleans(), changes=st.lists(CHANGES, min_size=1, max_size=4))
def test_checkpoints(tmp_path_factory, valid, changes):
    """A changed checkpoint gives a dictionary, or an error that names the file."""
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    content = {"state_dict": {"a": torch.ones(3, 2)}, "step": 3, "metric": np.float64(2)}
    torch.save(content, path, _use_new_zipfile_serialization=valid)
    path.write_bytes(changed(path.read_bytes(), changes))
    loaded, message = result_or_error(lambda: safe_load(path), ValueError)
    assert isinstance(loaded, dict) if message is None else str(path) in message

"""Test that random streams are distinct, and that those of training never change."""

from itertools import product

import pytest
import torch

from dens.random import Stream, make_generator, structure_key

KEYS = {  # the lengths of the keys that the code uses
    Stream.STRUCTURES: (2,),
    Stream.BATCHES: (1,),
    Stream.MODEL: (2,),
    Stream.VALIDATION: (0, 1),
    Stream.EVALUATION: (1,),
    Stream.CHECK: (1,),
    Stream.RELAXATION: (1,),
    Stream.STARTS: (2,),
}


def test_streams_with_small_keys_are_distinct():
    assert set(KEYS) == set(Stream)
    seeds = [
        stream.generator(seed, *key).initial_seed()
        for stream, lengths in KEYS.items()
        for length in lengths
        for seed, *key in product(range(4), repeat=length + 1)
    ]
    assert len(set(seeds)) == len(seeds)


def test_raw_keys_are_padded_with_zeros():
    """The reason for the length in the keys of the streams that training does not use."""
    assert make_generator(3, 0).initial_seed() == make_generator(3, 0, 0).initial_seed()


@pytest.mark.parametrize(
    ("stream", "key", "first"),
    [
        (Stream.STRUCTURES, (1, 2), [0.012093126773834229, 0.830248236656189]),
        (Stream.BATCHES, (3,), [0.9622958302497864, 0.9721611142158508]),
        (Stream.MODEL, (0, 3), [0.7237723469734192, 0.13487035036087036]),
    ],
)
def test_training_streams_stay_as_they_are(stream, key, first):
    """Recorded results and resumed runs depend on these numbers."""
    generator = stream.generator(7, *key)
    assert torch.rand(2, generator=generator).tolist() == first
    assert generator.initial_seed() == make_generator(7, int(stream), *key).initial_seed()


def test_keys_of_structures_stay_as_they_are():
    """The noise of runs that know no sample ids depends on these numbers."""
    numbers, pos = torch.tensor([8, 1, 1]), torch.arange(9.0).view(3, 3)
    assert structure_key(numbers, pos) == 40636579119014139
    assert structure_key(numbers.int(), pos.clone()) == 40636579119014139
    assert structure_key(numbers, pos + 1e-6) != structure_key(numbers, pos)
    assert structure_key(numbers.flip(0), pos) != structure_key(numbers, pos)

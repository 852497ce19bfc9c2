"""Draws are a pure function of seed and keys."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robust_ood.randomness import derive_seed, generator, generators, seed_torch

# What separates keys, and little else: hypothesis takes a second to list all of Unicode.
texts = st.text("'\",() \\01a\u00e9", max_size=5)
keys = st.lists(st.one_of(st.integers(), texts), max_size=4).map(tuple)


def draw(*args):
    return torch.rand(4, generator=generator(*args))


@given(st.integers(0, 2**40), keys)
def test_same_keys_same_draws(seed, names):
    assert torch.equal(draw(seed, *names), draw(seed, *names))
    assert 0 <= derive_seed(seed, *names) < 2**63


@given(st.tuples(st.integers(0, 9), keys), st.tuples(st.integers(0, 9), keys))
def test_different_keys_different_seeds(first, second):
    (seed, names), (other_seed, other_names) = first, second
    same = (seed, names) == (other_seed, other_names)
    assert (derive_seed(seed, *names) == derive_seed(other_seed, *other_names)) is same


def test_keys_are_separated_and_typed():
    families = [
        (0, "a", 1),
        (0, "a1"),
        (0, "a", "1"),
        (0, 1, "a"),
        (1, "a", 1),
        (0, "a", 1, 0),
        (0, "a', 1"),
        (0,),
    ]
    seeds = [derive_seed(*family) for family in families]
    assert len(set(seeds)) == len(seeds)
    for first, second in itertools.combinations(families, 2):
        assert not torch.equal(draw(*first), draw(*second))


def test_seeds_are_the_same_on_every_machine_and_python():
    digest = hashlib.blake2b(b"(7, 'attack start', 2, 31)", digest_size=8).digest()
    assert derive_seed(7, "attack start", 2, 31) == int.from_bytes(digest, "little") // 2


def test_neighbouring_keys_are_uncorrelated():
    draws = torch.stack(
        [torch.randn(400, generator=generator(0, "noise", epoch, 5)) for epoch in range(30)]
    )
    correlations = torch.corrcoef(draws) - torch.eye(30)
    assert correlations.abs().max() < 0.25  # 5 standard errors


def test_each_index_has_its_own_generator_whatever_its_batch():
    together = generators(3, "start", 1, indices=[5, 9, 2])
    draws = [torch.rand(2, generator=one) for one in together]
    for index, drawn in zip([5, 9, 2], draws, strict=True):
        assert torch.equal(drawn, draw_two(index))
    alone = generators(3, "start", 1, indices=torch.tensor([9]))
    assert torch.equal(torch.rand(2, generator=alone[0]), draws[1])


def draw_two(index):
    return torch.rand(2, generator=generator(3, "start", 1, index))


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    draw(0, "anything")
    generators(0, indices=range(3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    first = draw(0, "anything")
    torch.manual_seed(2)
    assert torch.equal(first, draw(0, "anything"))


@pytest.mark.parametrize("device", ["cuda:1", torch.device("cuda", 1)])
def test_generators_live_where_asked(device, monkeypatch):
    """Torch is asked for them there: not every machine has another device than the default."""
    made = []
    real = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: made.append(device) or real())
    drawn = torch.rand(2, generator=generator(0, "there", device=device))
    assert made == [device]
    assert torch.equal(drawn, torch.rand(2, generator=real().manual_seed(derive_seed(0, "there"))))


def test_seeding_for_dropout_is_torchs_own_seeding():
    torch.manual_seed(derive_seed(3, "dropout", 1, 2))
    expected = torch.dropout(torch.ones(50), 0.5, True)
    torch.rand(7)
    seed_torch(3, "dropout", 1, 2, device=torch.device("cpu"))
    assert torch.equal(torch.dropout(torch.ones(50), 0.5, True), expected)
    assert not torch.equal(torch.dropout(torch.ones(50), 0.5, True), expected)

"""Seeds that belong to the item, and shares that cover a list once."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.seeding import generator_for, seed_for, share


def test_a_seed_is_the_same_for_ever():
    # A published seed must give the same picture in years to come: the first 8 bytes of BLAKE2b of "<run>/<item>",
    # halved. The number was made with coreutils: printf 0/a | b2sum -l 64, read as hexadecimal, shifted right by one.
    assert seed_for(0, "a") == 0xB78B2EF3C704F401 >> 1


@given(st.integers(0, 2**63 - 1), st.text(min_size=1))
def test_a_seed_fits_torch_and_follows_its_definition(run_seed, key):
    seed = seed_for(run_seed, key)
    digest = hashlib.blake2b(f"{run_seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    assert seed == int.from_bytes(digest, "big") // 2
    assert 0 <= seed < 2**63


def test_items_and_runs_differ():
    seeds = {seed_for(run, f"item-{item}") for run in range(10) for item in range(100)}
    assert len(seeds) == 1000


def test_the_noise_depends_on_run_and_item_only():
    torch = pytest.importorskip("torch")
    first = torch.randn(4, generator=generator_for(7, "a"))
    torch.randn(9)  # the global state does not matter
    assert torch.equal(first, torch.randn(4, generator=generator_for(7, "a")))
    assert not torch.equal(first, torch.randn(4, generator=generator_for(7, "b")))
    assert not torch.equal(first, torch.randn(4, generator=generator_for(8, "a")))


@given(st.lists(st.integers()), st.integers(1, 9))
def test_shares_cover_everything_once_and_evenly(items, world_size):
    shares = [share(items, rank, world_size) for rank in range(world_size)]
    assert sorted(item for part in shares for item in part) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

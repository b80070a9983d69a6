"""Two stores read as one: rows of samples, each with a row that many share."""

import pickle

import pytest
import torch

from medisyn.errors import InputError
from medisyn.training.precompute import precompute
from medisyn.training.store import JoinedStore


class Named:
    def __init__(self, key, number):
        self.key, self.number = key, number


def store_of(folder, name, keys, variants=1):
    def encode(items):
        return {name: torch.tensor([[float(item.number)] for item in items])}

    items = [Named(key, number) for number, key in enumerate(keys)]
    return precompute(
        folder, keys, items.__getitem__, lambda: encode, encoder=name, corpus="c", variants=variants, shard_rows=2,
        vary=lambda item, variant: Named(item.key, item.number + variant / 10),
    )  # fmt: skip


@pytest.fixture
def pictures(tmp_path):
    return store_of(tmp_path, "picture", ["a", "b", "c"], variants=2)


@pytest.fixture
def texts(tmp_path):
    return store_of(tmp_path, "text", ["x", "y"])


def test_each_row_carries_the_shared_row_of_its_sample(pictures, texts):
    joined = JoinedStore(pictures, texts, ["y", "x", "y"])
    assert (len(joined), joined.keys, joined.variants) == (6, ["a", "b", "c"], 2)
    rows = [(round(float(joined[row]["picture"]), 3), float(joined[row]["text"])) for row in range(6)]
    assert rows == [(0.0, 1.0), (0.1, 1.0), (1.0, 0.0), (1.1, 0.0), (2.0, 1.0), (2.1, 1.0)]
    assert float(pickle.loads(pickle.dumps(joined))[5]["text"]) == 1.0
    with pytest.raises(IndexError):
        joined[6]


def test_a_column_is_one_name_of_all_rows(pictures):
    assert [round(float(x), 3) for x in pictures.column("picture")] == [0.0, 0.1, 1.0, 1.1, 2.0, 2.1]


def test_what_cannot_be_joined(pictures, texts):
    with pytest.raises(InputError, match="3 samples, but 2 keys of shared rows"):
        JoinedStore(pictures, texts, ["x", "y"])
    with pytest.raises(InputError, match="1 of 3 samples have no shared row"):
        JoinedStore(pictures, texts, ["x", "y", "z"])
    with pytest.raises(InputError, match="both stores hold picture"):
        JoinedStore(pictures, pictures, ["a", "b", "c"])

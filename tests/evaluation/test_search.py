"""Exact search by cosine and by hash: against the full matrix, over memory maps, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import InputError, RangeError
from medisyn.evaluation import search
from medisyn.evaluation.search import hash_values, nearest_hashes, nearest_neighbours


@pytest.fixture(params=[False, True], ids=["float32", "sifted in bfloat16"], autouse=True)
def arithmetic(request, monkeypatch):
    """Every test below, on a processor without and with bfloat16 products."""
    monkeypatch.setattr(search, "multiplies_bfloat16", lambda: request.param)


def features(n, seed=0, dim=12):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def by_full_matrix(queries, training, k):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), training.astype(float))]
    similarity = unit[0] @ unit[1].T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, axis=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BLOCK_ROWS", 4096), ("BLOCK_ROWS", 6), ("BLOCK_BYTES", 4 * (12 + 20) * 7)],
    ids=["one block", "six rows a block", "seven rows a block"],
)
def test_search_equals_the_full_matrix(monkeypatch, name, value):
    monkeypatch.setattr(search, name, value)
    queries, training = features(20), features(100, seed=1) * np.linspace(0.1, 10, 100)[:, None].astype(np.float32)
    found = nearest_neighbours(queries, training, k=5)
    index, similarity = by_full_matrix(queries, training, 5)
    np.testing.assert_array_equal(found.index_QK, index)
    np.testing.assert_allclose(found.similarity_QK, similarity, atol=1e-6)  # float32 products


def test_search_stays_inside_the_stratum():
    queries, training = features(6), features(40, seed=1)
    ours, theirs = ["x", "y"] * 3, ["x"] * 10 + ["y"] * 20 + ["z"] * 10
    found = nearest_neighbours(queries, training, k=3, query_strata=ours, training_strata=theirs)
    for row, stratum in enumerate(ours):
        part = np.flatnonzero(np.array(theirs) == stratum)
        index, _ = by_full_matrix(queries[row : row + 1], training[part], 3)
        np.testing.assert_array_equal(found.index_QK[row], part[index[0]])


def test_a_stratum_with_too_few_images_is_filled_with_minus_one():
    strata = {"query_strata": ["x", "none"], "training_strata": ["x", "x", "y"]}
    found = nearest_neighbours(features(2), features(3, seed=1), k=3, **strata)
    assert sorted(found.index_QK[0].tolist()) == [-1, 0, 1]
    assert found.index_QK[1].tolist() == [-1, -1, -1]
    assert np.isneginf(found.similarity_QK[1]).all()


def test_a_memory_map_is_searched_without_being_read_whole(tmp_path):
    np.save(tmp_path / "training.npy", features(50, seed=1))
    mapped = np.load(tmp_path / "training.npy", mmap_mode="r")
    found = nearest_neighbours(features(4), mapped, k=2)
    np.testing.assert_array_equal(found.index_QK, by_full_matrix(features(4), np.asarray(mapped), 2)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 1, "query_strata": ["a"] * 4}, "strata of both sets, or of neither"),
        ({"query_strata": ["a"], "training_strata": ["a"] * 5}, "1 and 5 names for 4 generated and 5 training images"),
    ],
)
def test_search_refuses(options, message):
    with pytest.raises(InputError, match=message):
        nearest_neighbours(features(4), features(5), **options)


def test_search_refuses_other_features():
    with pytest.raises(InputError, match=r"training features must be \(images, 12\), got \(5, 3\)"):
        nearest_neighbours(features(4), features(5, dim=3))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(0, 1000))
def test_any_block_size_gives_the_same_neighbours(count, k, rows, seed):
    queries, training = features(3, seed), features(count, seed + 1)
    whole = nearest_neighbours(queries, training, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK_ROWS", rows)
        blocks = nearest_neighbours(queries, training, k)
    np.testing.assert_array_equal(blocks.index_QK, whole.index_QK)
    np.testing.assert_allclose(blocks.similarity_QK, whole.similarity_QK, atol=1e-6)  # float32 products


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1], ids=["near copies of each other", "alike", "unlike"])
@pytest.mark.parametrize("share", [0, 0.02, 1], ids=["never sifted", "as shipped", "always sifted"])
def test_sifting_loses_nothing(monkeypatch, spread, share):
    """Where all products agree to the digits that bfloat16 keeps, only float32 can tell the nearest."""
    monkeypatch.setattr(search, "SIFTED_SHARE", share)
    monkeypatch.setattr(search, "BLOCK_ROWS", 50)
    middle = features(1, seed=5, dim=64)
    queries = middle + spread * features(30, seed=6, dim=64)
    training = middle + spread * features(1000, seed=7, dim=64)
    found = nearest_neighbours(queries, training, k=3)
    index, similarity = by_full_matrix(queries, training, 3)
    np.testing.assert_allclose(found.similarity_QK, similarity, atol=1e-6)  # float32 products
    if spread >= 1e-2:  # nearer to each other than float32 can tell, the order may differ
        np.testing.assert_array_equal(found.index_QK, index)


def test_the_same_answers_as_faiss():
    faiss = pytest.importorskip("faiss")
    queries, training = features(16, dim=64), features(3000, seed=1, dim=64)
    index = faiss.IndexFlatIP(64)
    index.add(training / np.linalg.norm(training, axis=1, keepdims=True))
    _, theirs = index.search(queries, 7)
    np.testing.assert_array_equal(nearest_neighbours(queries, training, 7).index_QK, theirs)


def test_training_features_that_are_not_finite_are_named(monkeypatch):
    monkeypatch.setattr(search, "BLOCK_ROWS", 2)
    training = features(7, seed=1)
    training[4, 3] = np.nan
    with pytest.raises(RangeError, match="training features: row 4 is NaN or infinite"):
        nearest_neighbours(features(2), training)
    training = features(7)
    with pytest.raises(RangeError, match="1 images have NaN"):
        nearest_neighbours(np.full((1, 12), np.nan), training)


def test_a_vector_of_zeros_resembles_nothing():
    training = np.array([[0, 0], [1, 0]], dtype=np.float32)
    found = nearest_neighbours(np.array([[1.0, 0.0]]), training, 2)
    assert found.similarity_QK.tolist() == [[1.0, 0.0]]


def test_hashes_by_hand(monkeypatch):
    training = hash_values(["ff00000000000000", "0000000000000003", "00000000000000f0"])
    assert training.tolist() == [0xFF << 56, 3, 0xF0]
    queries = hash_values(["0000000000000001", "ff00000000000000", "00000000000000f1"])
    for size in (search.BLOCK_BYTES, 16 * 3):  # all at once, and one by one
        monkeypatch.setattr(search, "BLOCK_BYTES", size)
        found = nearest_hashes(queries, training)
        assert found.index_Q.tolist() == [1, 0, 2]
        assert found.bits_Q.tolist() == [1, 0, 1]
    nobody = nearest_hashes(queries, training[:0])
    assert (nobody.index_Q.tolist(), nobody.bits_Q.tolist()) == ([-1] * 3, [65] * 3)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_the_nearest_hash_equals_python_s_own_count(numbers, query):
    found = nearest_hashes(hash_values([f"{query:016x}"]), hash_values([f"{n:016x}" for n in numbers]))
    assert found.bits_Q[0] == min((n ^ query).bit_count() for n in numbers)


@pytest.mark.parametrize("text", ["xyz", "00", "0" * 17])
def test_damaged_hashes(text):
    with pytest.raises(InputError, match="not 16 hex digits"):
        hash_values(["0" * 16, text])

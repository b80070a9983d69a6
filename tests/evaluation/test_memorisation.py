"""Patch distance, nearest neighbours and the statistics of copies: the oracles of the method, and planted copies."""

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.evaluation import memorisation
from medisyn.evaluation.memorisation import (
    Neighbours,
    closest_pairs,
    copy_statistics,
    flipped,
    nearest_neighbours,
    patch_distance,
)


def noise(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def grey(value, size=32):
    return np.full((size, size, 3), value, dtype=np.uint8)


def test_identical_and_opposite():
    assert patch_distance(noise(0), noise(0)) == 0.0
    assert patch_distance(grey(0), grey(255)) == 1.0
    assert patch_distance(grey(255), grey(0)) == 1.0  # uint8 would wrap around


def test_one_patch_off_by_51_is_a_fifth():
    # 51 / 255 in one of 16 patches; over the whole image it would be 0.2 / 4 = 0.05
    changed = grey(100)
    changed[8:16, 24:32] += 51
    np.testing.assert_allclose(patch_distance(grey(100), changed), 0.2, rtol=1e-12)


def test_the_grid_is_four_by_four_at_any_size():
    # the same picture at twice the size, patch by patch; not square
    small = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    large = [image.repeat(2, axis=0).repeat(2, axis=1) for image in (small, other)]
    np.testing.assert_allclose(patch_distance(*large), patch_distance(small, other), rtol=1e-12)


def test_independent_uniform_noise():
    # sqrt(1 / 6) = 0.408 is expected of a patch; the largest of 16 patches of 32 x 32 x 3 lies a little above
    found = patch_distance(noise(0, 128), noise(1, 128))
    assert 0.408 < found < 0.425


@pytest.mark.parametrize(
    ("a", "b"),
    [(grey(0), grey(0, 16)), (grey(0).astype(float), grey(0)), (grey(0)[:, :, 0], grey(0)[:, :, 0])],
    ids=["sizes", "float", "no channels"],
)
def test_patch_distance_needs_two_uint8_images_of_one_shape(a, b):
    with pytest.raises(InputError, match="two uint8 images of one shape"):
        patch_distance(a, b)


def test_patch_distance_needs_sides_that_divide():
    with pytest.raises(InputError, match="30 x 30 pixels do not divide into a 4 x 4 grid"):
        patch_distance(grey(0, 30), grey(0, 30))


def test_flips_by_hand():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert flipped(image, "none")[:, :, 0].tolist() == [[0, 1], [2, 3]]
    assert flipped(image, "horizontal")[:, :, 0].tolist() == [[1, 0], [3, 2]]
    assert flipped(image, "vertical")[:, :, 0].tolist() == [[2, 3], [0, 1]]
    assert flipped(image, "both")[:, :, 0].tolist() == [[3, 2], [1, 0]]


def test_unknown_flip():
    with pytest.raises(InputError, match="flip 'left' is unknown, allowed: none, horizontal"):
        flipped(grey(0), "left")


def features(n, seed=0, dim=12):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def by_full_matrix(queries, training, k):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), training.astype(float))]
    similarity = unit[0] @ unit[1].T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, axis=1)


@pytest.mark.parametrize("block_bytes", [128 * 2**20, 4 * (12 + 20) * 7], ids=["one block", "seven rows a block"])
def test_search_equals_the_full_matrix(monkeypatch, block_bytes):
    monkeypatch.setattr(memorisation, "BLOCK_BYTES", block_bytes)
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
    ],
)
def test_search_refuses(options, message):
    with pytest.raises(InputError, match=message):
        nearest_neighbours(features(4), features(5), **options)


def test_search_refuses_other_features():
    with pytest.raises(InputError, match=r"training features must be \(images, 12\), got \(5, 3\)"):
        nearest_neighbours(features(4), features(5, dim=3))


def test_planted_copies_are_found_and_strangers_are_not():
    training = [noise(seed) for seed in range(10, 20)]
    slightly = np.clip(training[3].astype(int) + np.random.default_rng(0).integers(-8, 9, (32, 32, 3)), 0, 255)
    queries = [training[2], training[5][:, ::-1], slightly.astype(np.uint8), noise(99)]
    everyone = Neighbours(np.tile(np.arange(10), (4, 1)), np.ones((4, 10), dtype=np.float32))
    pairs = closest_pairs(everyone, queries.__getitem__, training.__getitem__)
    assert [(p.training, p.flip) for p in pairs[:3]] == [(2, "none"), (5, "horizontal"), (3, "none")]
    assert pairs[0].distance == pairs[1].distance == 0.0
    assert pairs[2].distance < 0.05
    assert pairs[3].distance > 0.4
    statistics = copy_statistics([pair.distance for pair in pairs])
    assert (statistics.at_or_below, statistics.n) == (3, 4)


def test_a_query_without_neighbours_has_no_pair():
    nobody = Neighbours(np.array([[-1, -1], [0, -1]]), np.array([[-np.inf, -np.inf], [0.9, -np.inf]]))
    pairs = closest_pairs(nobody, lambda q: noise(q), lambda n: noise(n))
    assert [pair.query for pair in pairs] == [1]


def test_statistics_by_hand():
    found = copy_statistics([0.05, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], threshold=0.15)
    assert (found.n, found.at_or_below, found.share) == (8, 2, 0.25)  # 0.15 itself counts
    assert (found.minimum, found.median) == (0.05, 0.35)
    np.testing.assert_allclose(found.quantile_01, 0.05 + 0.07 * 0.1, rtol=1e-12)
    assert found.share_interval.high > 0.25


def test_closer_than_held_out_real_images():
    held_out = np.linspace(0.2, 1.2, 101).tolist()  # 1 % of them lie below 0.21
    assert copy_statistics([0.1, 0.205, 0.215, 0.5], held_out=held_out).closer_than_real == 2
    assert copy_statistics([0.1, 0.2]).closer_than_real is None


def test_wilcoxon_of_darwin_s_plants():
    # the example of scipy's documentation: W = 96, one-sided p = 0.0206298828125
    darwin = np.array([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75])
    found = copy_statistics(darwin.astype(float), threshold=0.0)
    np.testing.assert_allclose(found.wilcoxon_p, 0.0206298828125, rtol=1e-9)


def test_no_test_below_six_images():
    assert copy_statistics([0.5] * 5).wilcoxon_p is None


@pytest.mark.parametrize("distances", [[], [0.1, float("nan")]])
def test_statistics_need_finite_distances(distances):
    with pytest.raises(InputError, match="at least 1 finite distance"):
        copy_statistics(distances)

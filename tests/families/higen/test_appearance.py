import numpy as np
import pytest

from build_higen import mean_and_spread
from medisyn.errors import InputError, ModelError
from medisyn.families.higen.appearance import appearance_matrix, frame_similarity, rgb_frames, stretched
from medisyn.types import SYMMETRIC, Clip

CLIP = Clip(np.random.default_rng(0).integers(0, 256, (1, 4, 3, 5)).astype(np.uint8))


def test_the_published_matrix_by_hand():
    # a = 0.7, 32 frames: neighbours 1 - 0.7 / 31, corners 1 - 0.7
    matrix = appearance_matrix(0.7, 32)
    assert matrix.shape == (32, 32)
    np.testing.assert_allclose([matrix[0, 0], matrix[4, 5], matrix[0, 31], matrix[31, 0]], [1, 1 - 0.7 / 31, 0.3, 0.3])
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(appearance_matrix(0.0, 5), np.ones((5, 5)))
    np.testing.assert_array_equal(appearance_matrix(1.0, 1), [[1]])


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan")])
def test_a_factor_out_of_range(factor):
    with pytest.raises(InputError, match=r"appearance factor must lie in \[0, 1\]"):
        appearance_matrix(factor, 4)


def test_cosine_similarity_by_hand():
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-4.0, 0.0]])
    got = frame_similarity(CLIP, lambda frames: vectors)
    half = 0.5**0.5
    np.testing.assert_allclose(
        got, [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]], atol=1e-7
    )


def test_a_padded_frame_counts_as_the_real_one_before_it():
    seen = []

    def features(frames):
        seen.extend(frames)
        return mean_and_spread(frames)

    got = frame_similarity(CLIP, features, [False, True, True, False])
    assert len(seen) == 2  # padded frames are not even looked at
    whole = frame_similarity(CLIP, mean_and_spread)
    np.testing.assert_allclose(got, whole[np.ix_([1, 1, 2, 2], [1, 1, 2, 2])], atol=1e-6)


def test_what_the_encoder_is_handed():
    frames = rgb_frames(CLIP)
    assert [frame.shape for frame in frames] == [(3, 5, 3)] * 4
    np.testing.assert_array_equal(frames[2][..., 1], CLIP.array_CTHW[0, 2])


def test_what_cannot_be_compared():
    with pytest.raises(ModelError, match="zero or not finite"):
        frame_similarity(CLIP, lambda frames: np.zeros((len(frames), 3)))
    with pytest.raises(ModelError, match="zero or not finite"):
        frame_similarity(CLIP, lambda frames: np.full((len(frames), 3), np.nan))
    with pytest.raises(InputError, match="as uint8 grey or RGB"):
        frame_similarity(Clip(np.zeros((2, 4, 3, 5), np.uint8)), mean_and_spread)
    with pytest.raises(InputError, match="as uint8"):
        frame_similarity(Clip(np.zeros((1, 4, 3, 5), np.float32), SYMMETRIC), mean_and_spread)
    for real in ([False] * 4, [True] * 3):
        with pytest.raises(InputError, match="4 frames needs as many marks"):
            frame_similarity(CLIP, mean_and_spread, real)


def test_a_stretched_likeness_by_hand():
    np.testing.assert_allclose(stretched(np.array([1.0, 0.998, 0.99, 0.9]), 100), [1, 0.8, 0, -1], atol=1e-12)
    np.testing.assert_allclose(stretched(np.array([1.0, 0.3]), 1), [1, 0.3])

"""Clips in a corpus are stored without any loss, whatever their size, and the same clip gives the same bytes."""

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import build_video
from medisyn import ffv1
from medisyn.errors import CorpusError


def frames_of(clip_CTHW):
    return (clip_CTHW[:, t] for t in range(clip_CTHW.shape[1]))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 5), st.integers(8, 50), st.integers(8, 50), st.integers(0, 2**32 - 1))
def test_noise_comes_back_bit_by_bit(channels, frames, height, width, seed):
    clip = np.random.default_rng(seed).integers(0, 256, (channels, frames, height, width), dtype=np.uint8)
    np.testing.assert_array_equal(ffv1.decode(ffv1.encode(frames_of(clip), 25.0)), clip)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_is_that_part_of_the_whole(channels):
    clip = build_video.moving(9, channels=channels)
    content = ffv1.encode(frames_of(clip))
    for start, stop in ((0, 9), (0, 1), (3, 7), (8, 9)):
        np.testing.assert_array_equal(ffv1.decode(content, start, stop), clip[:, start:stop])
    np.testing.assert_array_equal(ffv1.decode(content, 6), clip[:, 6:])


def test_any_player_decodes_the_same_pixels_at_the_same_rate():
    clip = build_video.moving(5)
    with av.open(io.BytesIO(ffv1.encode(frames_of(clip), 29.97))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("ffv1", "bgr0")
        assert float(stream.average_rate) == pytest.approx(29.97, abs=1e-3)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    np.testing.assert_array_equal(np.stack(decoded).transpose(3, 0, 1, 2), clip)


@pytest.mark.parametrize("rate", [None, 1e-6, 0.5, 999.0, 20_000.0])
def test_no_rate_is_too_slow_or_too_fast(rate):
    clip = build_video.moving(5)
    np.testing.assert_array_equal(ffv1.decode(ffv1.encode(frames_of(clip), rate)), clip)


def test_the_same_frames_give_the_same_bytes():
    clip = build_video.moving(5)
    assert ffv1.encode(frames_of(clip), 25.0) == ffv1.encode(frames_of(clip.copy()), 25.0)


def test_what_is_no_such_file_or_too_short_is_refused():
    content = ffv1.encode(frames_of(build_video.moving(4)))
    with pytest.raises(CorpusError, match=r"not readable FFV1 \(InvalidDataError\)"):
        ffv1.decode(b"no clip" * 100)
    with pytest.raises(CorpusError, match="has no frames 2 to 5"):
        ffv1.decode(content, 2, 6)
    with pytest.raises(CorpusError, match="has no frames 4 to the end"):
        ffv1.decode(content, 4)
    with pytest.raises(CorpusError, match="a clip"):
        ffv1.decode(content[: len(content) // 3], 0, 4)

"""Frames at the papers' size, where the real pixels lie, and the windows that training draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import build_video
from medisyn.corpus.clips import (
    CLIP_PRESETS,
    ClipPreprocess,
    clip_preset,
    first_frame,
    framing,
    valid_mask,
    window,
    window_generator,
)
from medisyn.errors import ConfigError, InputError
from medisyn.types import Clip, Picture, Sample

PAPER, FIT = CLIP_PRESETS["medisyn-v1-video"], CLIP_PRESETS["medisyn-v1-video-fit"]


@pytest.mark.parametrize(
    ("preset", "size", "resized", "place", "valid"),
    [
        (PAPER, (350, 350), (256, 256), (0, -96), (0, 96, 256, 352)),  # narrower: padded on both sides
        (PAPER, (720, 1280), (256, 455), (0, 3), (0, 0, 256, 448)),  # wider: 7 columns are cut off
        (PAPER, (256, 448), (256, 448), (0, 0), (0, 0, 256, 448)),
        (PAPER, (240, 320), (256, 341), (0, -54), (0, 54, 256, 395)),
        (FIT, (720, 1280), (252, 448), (-2, 0), (2, 0, 254, 448)),  # the whole frame, bars above and below
        (FIT, (350, 350), (256, 256), (0, -96), (0, 96, 256, 352)),
    ],
)
def test_the_size_of_the_paper_by_hand(preset, size, resized, place, valid):
    made = framing(preset, *size)
    assert (made.resized, (made.top, made.left), made.valid) == (resized, place, valid)


def test_pixels_equal_pillows_resize_and_crop():
    frame = build_video.moving(1, 90, 300)[:, 0]
    made = framing(clip_preset("medisyn-v1-video", height=64), 90, 300)(frame)
    whole = Image.fromarray(frame.transpose(1, 2, 0)).resize((213, 64), Image.Resampling.LANCZOS)
    left = (213 - 112) // 2
    np.testing.assert_array_equal(made.transpose(1, 2, 0), np.asarray(whole.crop((left, 0, left + 112, 64))))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(CLIP_PRESETS)), st.integers(16, 90), st.integers(16, 90), st.integers(12, 60),
    st.integers(12, 60), st.sampled_from([1.0, 4 / 3, 0.75]), st.sampled_from([1, 3]),
)  # fmt: skip
def test_the_valid_region_is_exactly_where_a_white_frame_is_white(name, height, width, rows, columns, aspect, channels):
    made = framing(clip_preset(name, height=rows, width=columns), height, width, aspect)
    shown = made(np.full((channels, height, width), 255, dtype=np.uint8))
    assert shown.shape == (channels, rows, columns)
    top, left, bottom, right = made.valid
    expected = np.zeros((rows, columns), dtype=np.uint8)
    expected[top:bottom, left:right] = 255
    for channel in shown:
        np.testing.assert_array_equal(channel, expected)


def test_wide_pixels_make_a_wide_frame():
    """Frames of 480 x 480 pixels that are twice as wide as high are shown 2 to 1."""
    assert framing(PAPER, 480, 480, 2.0).resized == (256, 512)
    assert framing(FIT, 480, 480, 2.0).resized == (224, 448)


def test_a_preset_at_another_size_keeps_its_proportion():
    assert clip_preset("medisyn-v1-video", height=64) == ClipPreprocess(
        geometry="height-crop-pad", height=64, width=112
    )
    assert clip_preset("medisyn-v1-video-fit", height=64, width=64).width == 64


def test_what_is_no_preset_or_no_clip_is_refused():
    with pytest.raises(
        ConfigError, match=r"clip preset 'medisyn-v1-vidoe' is unknown.*Did you mean 'medisyn-v1-video'"
    ):
        clip_preset("medisyn-v1-vidoe")
    with pytest.raises(ConfigError, match="clip preprocess has no field frames"):
        clip_preset("medisyn-v1-video", frames=32)
    with pytest.raises(ConfigError, match=r"clip geometry 'fit' is unknown, allowed: height-crop-pad, fit-pad"):
        ClipPreprocess(geometry="fit", height=8, width=8)
    with pytest.raises(ConfigError, match="at least 2 x 2 pixels, got 1 x 8"):
        ClipPreprocess(geometry="fit-pad", height=8, width=1)
    with pytest.raises(InputError, match="a strip of 170 x 10 pixels; the sides may differ 16-fold"):
        framing(PAPER, 10, 170)


def sample(frames: int, mask=None) -> Sample:
    clip = Clip(build_video.moving(frames, 16, 24), frames_per_second=25.0, provenance={"key": "k"})
    return Sample("k", clip, "a clip", {"labels": ("x",)}, {} if mask is None else {"valid": mask})


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**32))
def test_a_window_is_consecutive_frames_then_black(length, frames, seed):
    whole = sample(length)
    made = window(whole, frames, np.random.default_rng(seed))
    start, real = made.metadata["first_frame"], min(length, frames)
    assert 0 <= start <= max(length - frames, 0)
    shown = made.item.array_CTHW
    assert shown.shape == (3, frames, 16, 24)
    np.testing.assert_array_equal(shown[:, :real], whole.item.array_CTHW[:, start : start + real])
    assert not shown[:, real:].any()
    assert ("valid" in made.masks) == (frames > length)
    if frames > length:
        mask = made.masks["valid"]
        assert (mask.shape, mask.dtype) == ((frames, 16, 24), np.uint8)
        assert mask[:real].all()
        assert not mask[real:].any()
    assert (made.caption, made.metadata["labels"], made.item.frames_per_second) == ("a clip", ("x",), 25.0)


def test_the_mask_of_a_padded_clip_goes_with_the_window():
    region = (2, 5, 14, 20)
    whole = sample(6, valid_mask(region, (6, 16, 24), 6))
    made = window(whole, 9, np.random.default_rng(0))
    np.testing.assert_array_equal(made.masks["valid"], valid_mask(region, (9, 16, 24), 6))
    assert made.masks["valid"].sum() == 6 * 12 * 15
    assert window(whole, 4, np.random.default_rng(0)).masks["valid"].shape == (4, 16, 24)
    assert valid_mask(None, (4, 3, 3), 4) is None
    assert valid_mask((0, 0, 3, 3), (4, 3, 3), 4) is None


def test_every_place_is_equally_likely_and_visits_differ():
    """400 draws over 5 places: 80 each, standard deviation 8; five of them away would be 1 in a million."""
    draws = [first_frame(36, 32, window_generator(7, "k", visit)) for visit in range(400)]
    counts = np.bincount(draws, minlength=5)
    assert len(counts) == 5
    assert np.abs(counts - 80).max() < 40
    assert draws[:50] == [first_frame(36, 32, window_generator(7, "k", visit)) for visit in range(50)]
    assert draws[:50] != [first_frame(36, 32, window_generator(7, "other", visit)) for visit in range(50)]
    assert draws[:50] != [first_frame(36, 32, window_generator(8, "k", visit)) for visit in range(50)]


def test_a_window_of_nothing_and_of_a_picture_is_refused():
    with pytest.raises(InputError, match="at least 1 frame, got 0"):
        window(sample(4), 0, np.random.default_rng(0))
    picture = Sample("k", Picture(np.zeros((1, 4, 4), dtype=np.uint8)), "a picture")
    with pytest.raises(InputError, match="k: a window is drawn from a clip, got a Picture"):
        window(picture, 4, np.random.default_rng(0))

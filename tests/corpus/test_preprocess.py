"""The papers' 2D presets: geometry by hand and against plain Pillow, the intensity step, and what is refused."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from medisyn.corpus.preprocess import (
    GEOMETRIES,
    PRESETS,
    WINDOWS,
    FullRange,
    Percentile,
    Preprocess,
    Window,
    apply,
    channels_to_rgb,
    preset,
    to_grey_levels,
)
from medisyn.errors import ConfigError, InputError, RangeError
from medisyn.types import HU, UINT8, Picture, ValueRange


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8)


def test_presets_carry_the_papers_numbers():
    assert PRESETS["long-side-pad-crop"] == Preprocess(geometry="long-side-pad-crop", size=1024)
    assert PRESETS["short-side-crop"] == Preprocess(geometry="short-side-crop", size=512)
    assert PRESETS["nonzero-long-side-pad"] == Preprocess(geometry="nonzero-long-side-pad", size=512)
    assert PRESETS["ct-window"].intensity == Window(700, 100)
    assert PRESETS["percentile"].intensity == Percentile(0.5, 99.5)
    assert WINDOWS["lung"] == Window(1500, -600)
    assert WINDOWS["mediastinum"] == Window(400, 40)


def test_short_side_crop_by_hand():
    wide = np.arange(12, dtype=np.uint8).reshape(1, 2, 6) * 20
    got = apply(Preprocess(geometry="short-side-crop", size=2, rgb=False), Picture(wide))
    assert got.array_CHW.tolist() == [[[40, 60], [160, 180]]]  # columns 2 and 3, unscaled


def test_long_side_pad_crop_by_hand():
    """Size 8: long side 9, square 9 x 9, the middle 8 x 8. A 9 x 3 picture is not scaled; its last column is lost."""
    wide = np.tile(np.arange(1, 10, dtype=np.uint8) * 20, (3, 1))
    got = apply(Preprocess(geometry="long-side-pad-crop", size=8, rgb=False), Picture(wide[None])).array_CHW[0]
    assert got[3].tolist() == [20, 40, 60, 80, 100, 120, 140, 160]
    assert (got[[0, 1, 2, 6, 7]] == 0).all()
    assert (got[3:6] == got[3]).all()


def test_nonzero_long_side_pad_by_hand():
    framed = np.zeros((1, 9, 9), np.uint8)
    framed[0, 2:4, 3:7] = [[10, 20, 30, 40], [50, 60, 70, 80]]
    got = apply(Preprocess(geometry="nonzero-long-side-pad", size=4, rgb=False), Picture(framed)).array_CHW[0]
    assert got.tolist() == [[0] * 4, [10, 20, 30, 40], [50, 60, 70, 80], [0] * 4]


@pytest.mark.parametrize(("height", "width"), [(300, 200), (97, 411), (64, 64)])
def test_short_side_crop_equals_plain_pillow(height, width):
    array = noise(height, width)
    image = Image.fromarray(array.transpose(1, 2, 0))
    scale = 128 / min(image.size)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = (image.width - 128) // 2, (image.height - 128) // 2
    expected = np.asarray(image.crop((left, top, left + 128, top + 128))).transpose(2, 0, 1)
    got = apply(preset("short-side-crop", size=128), Picture(array))
    np.testing.assert_array_equal(got.array_CHW, expected)


def test_long_side_pad_crop_equals_the_three_steps_of_the_paper():
    array = noise(300, 200)
    image = Image.fromarray(array.transpose(1, 2, 0)).resize((768, 1152), Image.Resampling.LANCZOS)
    square = np.zeros((1152, 1152, 3), np.uint8)
    square[:, 192:960] = np.asarray(image)
    got = apply(PRESETS["long-side-pad-crop"], Picture(array))
    np.testing.assert_array_equal(got.array_CHW, square[64:1088, 64:1088].transpose(2, 0, 1))


def test_nonzero_long_side_pad_equals_pillows_own_pad():
    array = np.zeros((1, 120, 200), np.uint8)
    array[0, 10:70, 50:150] = noise(60, 100, 1)[0] | 1
    cropped = Image.fromarray(array[0, 10:70, 50:150])
    expected = np.asarray(ImageOps.pad(cropped, (64, 64), method=Image.Resampling.LANCZOS, color=0))
    got = apply(preset("nonzero-long-side-pad", size=64, rgb=False), Picture(array)).array_CHW[0]
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]), st.sampled_from(GEOMETRIES),
    st.integers(1, 40), st.booleans(), st.sampled_from(["lanczos", "bicubic"]),
)  # fmt: skip
def test_every_picture_becomes_a_square_of_the_asked_size(height, width, channels, geometry, size, rgb, resample):
    array = noise(height, width, channels) | 1
    array[0, 0, 0], array[-1, -1, -1] = 0, 255
    if array.min() == array.max() or max(height, width) > 16 * min(height, width):
        return
    got = apply(Preprocess(geometry=geometry, size=size, rgb=rgb, resample=resample), Picture(array))
    assert got.array_CHW.shape == (3 if rgb or channels == 3 else 1, size, size)
    assert got.array_CHW.dtype == np.uint8
    assert got.value_range == UINT8


def test_grey_is_repeated_in_three_channels():
    got = apply(preset("short-side-crop", size=16), Picture(noise(20, 30, 1))).array_CHW
    assert got.shape == (3, 16, 16)
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0], got[2])


def test_resizing_is_antialiased():
    """Fine stripes shrink to grey; without antialiasing they become black or white."""
    stripes = np.zeros((1, 256, 256), np.uint8)
    stripes[:, :, ::2] = 200
    got = apply(preset("short-side-crop", size=32, rgb=False), Picture(stripes)).array_CHW
    assert abs(float(got[0, 4:-4, 4:-4].mean()) - 100) < 2
    assert got[0, 4:-4, 4:-4].std() < 3


def test_spacing_follows_the_scale():
    picture = Picture(noise(100, 200), spacing_mm=(0.5, 0.5))
    assert apply(preset("short-side-crop", size=50), picture).spacing_mm == pytest.approx((1.0, 1.0))
    assert apply(preset("long-side-pad-crop", size=512), picture).spacing_mm == pytest.approx((100 / 576, 100 / 576))
    assert apply(preset("short-side-crop", size=50), Picture(noise(9, 9))).spacing_mm is None


@pytest.mark.parametrize(
    ("geometry", "height", "width", "size", "place"),
    [
        ("short-side-crop", 60, 90, 16, (0, 4)),  # 16 x 24, the middle 16
        ("short-side-crop", 90, 60, 16, (4, 0)),
        ("short-side-crop", 20, 20, 16, (0, 0)),
        ("long-side-pad-crop", 90, 180, 16, (0, 1)),  # 9 x 18: rows are padded, one column is lost on each side
        ("nonzero-long-side-pad", 40, 40, 16, (0, 0)),
    ],
)
def test_the_original_size_and_the_place_of_the_crop(geometry, height, width, size, place):
    made = apply(Preprocess(geometry=geometry, size=size), Picture(noise(height, width) | 1))
    assert made.provenance["original_size"] == (height, width)
    assert made.provenance["crop_top_left"] == place


def test_the_frame_that_was_cut_off_counts_as_cropped():
    framed = np.zeros((1, 40, 40), np.uint8)
    framed[0, 10:30, 6:36] = 9  # 20 x 30; at 15 pixels half of it: 10 x 15, with 2 rows of padding above
    made = apply(Preprocess(geometry="nonzero-long-side-pad", size=15), Picture(framed))
    assert made.provenance["original_size"] == (40, 40)
    assert made.provenance["crop_top_left"] == (5 - 3, 3)  # (10 - 15) // 2 = -3 rows of padding


def test_provenance_is_kept():
    picture = Picture(noise(9, 9), provenance={"slice": 3})
    assert apply(preset("short-side-crop", size=4), picture).provenance["slice"] == 3


def ct(*values):
    return Picture(np.array([[values]], np.float32), HU)


def test_ct_window_by_hand():
    grey = to_grey_levels(ct(-1024, -250, 100, 450, 3000), WINDOWS["angiography"])
    assert grey.tolist() == [[[0, 0, 128, 255, 255]]]  # (100 + 250) / 700 * 255 = 127.5, half to even
    lung = to_grey_levels(ct(-1000, -600, 150), WINDOWS["lung"])
    assert lung.tolist() == [[[60, 128, 255]]]  # 350 / 1500 * 255 = 59.5, half to even


def test_percentiles_and_full_range_of_raw_values():
    values = np.arange(1001, dtype=np.uint16).reshape(1, 7, 143)
    grey = to_grey_levels(Picture(values, ValueRange(0, 65535, "raw")), Percentile(10, 90))
    assert (grey == 0).sum() == 101 + 1  # 0..100 and 101, which is 0.3 grey levels
    assert (grey == 255).sum() == 101 + 1
    full = np.array([[[0, 257, 32896, 65535]]], np.uint16)
    assert to_grey_levels(Picture(full, ValueRange(0, 65535, "raw")), FullRange()).tolist() == [[[0, 1, 128, 255]]]
    unit = Picture(np.array([[[0.0, 0.2, 1.0]]]), ValueRange(0, 1, "unit"))
    assert to_grey_levels(unit, FullRange()).tolist() == [[[0, 51, 255]]]


def test_the_intensity_step_comes_before_the_geometry():
    """The bright speck is clipped before it is smeared over its neighbours by resizing."""
    array = np.full((1, 64, 64), 1000, np.uint16)
    array[0, :, 32:] = 2000
    array[0, 16, 16] = 60000
    got = apply(preset("percentile", size=32, rgb=False), Picture(array, ValueRange(0, 65535, "raw"))).array_CHW
    assert got[0, 8, 8] > 30  # the speck counts as 2000, not as 60000 ...
    assert got[0, 20, 4] == 0
    assert got[0, 20, 28] == 255  # ... and the right half is white, not dim


@pytest.mark.parametrize(
    ("picture", "intensity", "text"),
    [
        (Picture(np.zeros((1, 4, 4), np.uint8)), None, "every pixel is 0: the image is empty"),
        (Picture(np.full((1, 4, 4), 9.0), ValueRange(0, 10, "raw")), Percentile(), "the image is empty"),
        (
            Picture(noise(4, 4, 1).astype(np.uint16), ValueRange(0, 65535, "raw")),
            None,
            "holds raw values .* Choose an intensity",
        ),
        (ct(-1000, 0, 40), None, "holds hu values from -1000 to 40, not grey levels"),
        (Picture(noise(4, 4)), WINDOWS["lung"], "CT window needs HU, but the picture holds uint8"),
        (ct(0.0, 0.5, 1.0), WINDOWS["lung"], "looks like .0, 1."),
        (ct(-1000, -990, -400), WINDOWS["mediastinum"], "every pixel is 0: nothing of the picture is left"),
    ],
)
def test_pictures_that_do_not_suit_the_intensity_step(picture, intensity, text):
    with pytest.raises(RangeError, match=text):
        apply(Preprocess(geometry="short-side-crop", size=4, intensity=intensity), picture)


def test_a_strip_is_no_picture():
    array = noise(2, 64)
    with pytest.raises(InputError, match="strip of 64 x 2 pixels"):
        apply(preset("short-side-crop", size=16), Picture(array))
    assert apply(preset("short-side-crop", size=16), Picture(array[:, :, :32])).array_CHW.shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: preset("short-side-corp"), "unknown, allowed: .* Did you mean 'short-side-crop'"),
        (lambda: preset("ct-window", window="lungs"), "CT window 'lungs' is unknown.* Did you mean 'lung'"),
        (lambda: preset("short-side-crop", sise=3), "no field sise"),
        (lambda: Preprocess(geometry="stretch", size=8), "geometry 'stretch' is unknown"),
        (lambda: Preprocess(geometry="short-side-crop", size=0), "at least 1 pixel, got 0"),
        (lambda: Preprocess(geometry="short-side-crop", size=8, resample="nearest"), "allowed: lanczos, bicubic"),
    ],
)
def test_unknown_settings(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_preset_is_changed_by_name():
    changed = preset("ct-window", size=64, window="bone", rgb=False)
    expected = dataclasses.replace(PRESETS["ct-window"], size=64, intensity=WINDOWS["bone"], rgb=False)
    assert changed == expected


def test_three_mr_sequences_become_the_channels_of_one_picture():
    def mr(scale):
        return Picture((noise(8, 8, 1).astype(np.uint16)) * scale, ValueRange(0, 65535, "raw"), (0.5, 0.5))

    rgb = channels_to_rgb([mr(1), mr(7), mr(100)], FullRange())
    np.testing.assert_array_equal(rgb.array_CHW[1], to_grey_levels(mr(7), FullRange())[0])
    own = channels_to_rgb([mr(1), mr(7), mr(100)])
    np.testing.assert_array_equal(own.array_CHW[0], own.array_CHW[2])  # each channel is stretched on its own
    assert own.spacing_mm == (0.5, 0.5)
    with pytest.raises(InputError, match=r"three grey pictures of one shape, got \(1, 8, 8\), \(1, 8, 8\)"):
        channels_to_rgb([mr(1), mr(2)])
    with pytest.raises(InputError, match="of one shape"):
        channels_to_rgb([mr(1), mr(2), Picture(noise(8, 9, 1))])


def test_a_jpeg_through_reader_and_preset_equals_the_plain_pillow_loop(tmp_path):
    from medisyn.corpus.readers import read_item

    Image.fromarray(noise(60, 80).transpose(1, 2, 0)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        resized = opened.resize((round(80 * 32 / 60), 32), Image.Resampling.LANCZOS)
    expected = resized.crop((5, 0, 37, 32))
    got = apply(preset("short-side-crop", size=32), read_item(tmp_path / "a.jpg"))
    pngs = []
    for image in (expected, Image.fromarray(got.array_CHW.transpose(1, 2, 0))):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        pngs.append(stream.getvalue())
    assert pngs[0] == pngs[1]

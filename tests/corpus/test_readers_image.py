"""PNG, JPEG, TIFF, BMP: every mode by hand-made pixels, orientation, stacks, and damage."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import skimage
import tifffile
from PIL import Image

from medisyn.corpus.readers import image as image_reader
from medisyn.corpus.readers import read_item, read_series_slices
from medisyn.corpus.readers.archive import Entry
from medisyn.corpus.readers.image import read_indices
from medisyn.corpus.readers.tiff import ome_spacing
from medisyn.errors import RangeError, ReadError
from medisyn.types import UINT8, Clip, Picture, ValueRange

GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
SKIMAGE = Path(skimage.__file__).parent / "data"


def saved(folder: Path, picture: Image.Image, name: str = "a.png", **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_grey_and_colour_keep_every_value(tmp_path, name):
    grey = read_item(saved(tmp_path, Image.fromarray(GREY), name))
    assert grey.value_range == UINT8
    np.testing.assert_array_equal(grey.array_CHW, GREY[None])
    colour = read_item(saved(tmp_path, Image.fromarray(RGB), name))
    np.testing.assert_array_equal(colour.array_CHW, RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_stays_raw(tmp_path, name):
    wide = GREY.astype(np.uint16) * 257
    picture = read_item(saved(tmp_path, Image.fromarray(wide), name))
    assert picture.value_range == ValueRange(0, 65535, "raw")
    assert picture.array_CHW.dtype == np.uint16
    np.testing.assert_array_equal(picture.array_CHW[0], wide)


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = GREY >= 150
    picture = read_item(saved(tmp_path, Image.fromarray(bits)))
    assert picture.array_CHW.tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_palettes_are_resolved_and_grey_palettes_stay_grey(tmp_path):
    indices = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8)).convert("P")
    indices.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50] + [0] * 759)
    colour = read_item(saved(tmp_path, indices))
    assert colour.array_CHW[:, 0, 1].tolist() == [10, 20, 30]
    assert colour.array_CHW[:, 1, 1].tolist() == [200, 100, 50]
    indices.putpalette([0, 0, 0, 90, 90, 90, 200, 200, 200] + [0] * 759)
    assert read_item(saved(tmp_path, indices)).array_CHW.tolist() == [[[0, 90], [90, 200]]]


def test_alpha_is_flattened_on_black(tmp_path):
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 51], [200, 100, 50, 0]]], np.uint8)
    picture = read_item(saved(tmp_path, Image.fromarray(rgba)))
    assert picture.array_CHW[:, 0].T.tolist() == [[200, 100, 50], [40, 20, 10], [0, 0, 0]]  # 51/255 is a fifth
    grey_alpha = Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8), mode=None)
    assert grey_alpha.mode == "LA"
    assert read_item(saved(tmp_path, grey_alpha)).array_CHW.tolist() == [[[200, 0]]]


def test_a_transparent_value_becomes_black(tmp_path):
    assert read_item(saved(tmp_path, Image.fromarray(GREY), transparency=200)).array_CHW.tolist() == [
        [[0, 50, 100], [150, 0, 255]]
    ]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, lambda a: np.rot90(a)),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, turn, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_item(saved(tmp_path, Image.fromarray(GREY), name, exif=exif))
    np.testing.assert_array_equal(picture.array_CHW[0], turn(GREY))


def test_a_phone_jpeg_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = np.zeros((16, 32), np.uint8)
    lying[:, 24:] = 250  # bright right end: upright it lies at the bottom
    picture = read_item(saved(tmp_path, Image.fromarray(lying), "a.jpg", exif=exif))
    assert picture.array_CHW.shape == (1, 32, 16)
    assert picture.array_CHW[0, 28, 8] > 240
    assert picture.array_CHW[0, 4, 8] < 10


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_print_colours_are_refused(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.tif"
    with pytest.raises(ReadError, match=f"picture is {mode}, a print or lab colour space"):
        read_item(saved(tmp_path, Image.new(mode, (8, 8)), name))


def test_ycbcr_tiff_becomes_rgb(tmp_path):
    picture = Image.new("RGB", (8, 8), (200, 30, 90)).convert("YCbCr")
    got = read_item(saved(tmp_path, picture, "a.tif")).array_CHW[:, 4, 4]
    np.testing.assert_allclose(got, [200, 30, 90], atol=2)  # rounding of the colour transform


def test_a_stack_is_a_clip_and_smaller_pages_are_left_out(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in (GREY, GREY + 1, GREY[:1, :1]):  # the last like a thumbnail
            writer.write(page, photometric="minisblack")
    clip = read_item(tmp_path / "a.tif")
    assert isinstance(clip, Clip)
    assert clip.array_CTHW.shape == (1, 2, 2, 3)
    np.testing.assert_array_equal(clip.array_CTHW[0, 1], GREY + 1)
    assert clip.provenance["pages_ignored"] == 1
    frames = read_series_slices(tmp_path / "a.tif")
    assert [frame.provenance["slice"] for frame in frames] == [0, 1]
    np.testing.assert_array_equal(frames[0].array_CHW[0], GREY)


def test_a_stack_of_grey_and_colour_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY, photometric="minisblack")
        writer.write(RGB, photometric="rgb")
    with pytest.raises(ReadError, match="mixes grey and colour"):
        read_item(tmp_path / "a.tif")


def test_planes_fractions_and_white_is_zero(tmp_path):
    tifffile.imwrite(tmp_path / "planes.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_item(tmp_path / "planes.tif").array_CHW, RGB.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "wide.tif", RGB.astype(np.uint16) * 256, photometric="rgb")
    np.testing.assert_array_equal(read_item(tmp_path / "wide.tif").array_CHW, RGB.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "half.tif", GREY / 2, photometric="minisblack")
    half = read_item(tmp_path / "half.tif")
    assert half.value_range == ValueRange(0, 127.5, "raw")
    np.testing.assert_array_equal(half.array_CHW[0], GREY / 2)
    for wrong in (np.nan, np.inf):
        tifffile.imwrite(tmp_path / "nan.tif", np.where(GREY.min() < GREY, GREY / 2, wrong), photometric="minisblack")
        with pytest.raises(RangeError, match=r"\d pixels are NaN or infinite"):
            read_item(tmp_path / "nan.tif")
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        tifffile.imwrite(tmp_path / "white.tif", GREY.astype(dtype), photometric="miniswhite")
        np.testing.assert_array_equal(read_item(tmp_path / "white.tif").array_CHW[0], top - GREY.astype(dtype))


def jpeg_bytes(array_HWC: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array_HWC).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def write_jpeg_tiles(path: Path, shape: tuple[int, ...], tiles: list[bytes]) -> Path:
    """A TIFF of 16 x 16 JPEG tiles whose header says RGB, whatever the JPEG streams hold."""
    options = {"dtype": np.uint8, "tile": (16, 16), "photometric": "rgb", "compression": "jpeg"}
    tifffile.imwrite(path, iter(tiles), shape=shape, **options)
    with tifffile.TiffFile(path, mode="r+b") as made:
        made.pages[0].tags["PhotometricInterpretation"].overwrite(2)  # tifffile writes YCbCr
    return path


def test_subsampled_jpeg_tiles_called_rgb_are_read(tmp_path):
    """What Bio-Formats and QuPath write, and libtiff refuses: photometric RGB over YCbCr JPEG with 2 x 2 chroma."""
    rows, columns = np.mgrid[0:40, 0:24]
    smooth = np.stack([rows * 5, columns * 8, 200 - rows], axis=-1).astype(np.uint8)
    padded = np.pad(smooth, ((0, 8), (0, 8), (0, 0)), mode="edge")
    tiles = [padded[y : y + 16, x : x + 16] for y in (0, 16, 32) for x in (0, 16)]
    encoded = [jpeg_bytes(np.ascontiguousarray(tile), subsampling=2) for tile in tiles]
    path = write_jpeg_tiles(tmp_path / "a.tif", smooth.shape, encoded)
    with pytest.raises(OSError, match="decoder error"):
        Image.open(path).load()
    got = read_item(path).array_CHW.transpose(1, 2, 0)
    assert got.shape == smooth.shape
    assert np.abs(got.astype(int) - smooth).mean() < 3  # JPEG at quality 95


def unmarked_rgb_jpeg(array_HWC: np.ndarray) -> bytes:
    """A JPEG whose components are RGB but are numbered 1, 2, 3 and have no Adobe mark, as slide scanners write."""
    content = jpeg_bytes(array_HWC, keep_rgb=True, subsampling=0)
    mark = content.index(b"\xff\xee\x00\x0eAdobe")
    content = content[:mark] + content[mark + 16 :]
    for frame in (b"\xff\xc0", b"\xff\xda"):  # the frame and the scan name the components R, G, B
        at = content.index(frame)
        head = content[at : at + 20].replace(b"R", b"\x01", 1).replace(b"G", b"\x02", 1).replace(b"B", b"\x03", 1)
        content = content[:at] + head + content[at + 20 :]
    return content


def test_true_rgb_jpeg_tiles_are_not_turned_into_other_colours(tmp_path):
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    write_jpeg_tiles(tmp_path / "a.tif", flat.shape, [unmarked_rgb_jpeg(flat)])
    np.testing.assert_allclose(read_item(tmp_path / "a.tif").array_CHW[:, 8, 8], [200, 30, 90], atol=2)


def test_jpeg_strips_with_tables_once_per_page(tmp_path):
    """libtiff's own JPEG, decoded by libtiff as the oracle."""
    rows, columns = np.mgrid[0:48, 0:32]
    smooth = np.stack([rows * 5, columns * 7, 200 - rows], axis=-1).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(smooth), "a.tif", compression="jpeg", quality=95)
    got = read_item(path).array_CHW.transpose(1, 2, 0)
    np.testing.assert_array_equal(got, np.asarray(Image.open(path).convert("RGB")))
    assert np.abs(got.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize(
    ("array", "options", "text"),
    [
        (np.zeros((2, 8, 8), np.int16), {"photometric": "minisblack", "planarconfig": "separate"}, "2 channels"),
        (
            np.zeros((4, 16, 16), np.float32),
            {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 16)},
            "axes ZYX",
        ),
    ],
)
def test_tiff_pages_that_are_no_picture(tmp_path, array, options, text):
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    with pytest.raises(ReadError, match=text):
        read_item(tmp_path / "a.tif")


def test_jpeg_in_tiff_with_four_channels_is_refused(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 16)), "a.tif", compression="jpeg")
    with pytest.raises(ReadError, match="1 or 3 channels of 8 bits, this has 4"):
        read_item(path)


def test_ome_pixel_size_in_millimetres(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.ome.tif", RGB, photometric="rgb", ome=True, metadata={"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    )
    picture = read_item(tmp_path / "a.ome.tif")
    assert picture.spacing_mm == pytest.approx((0.0005, 0.00025))
    assert ome_spacing('PhysicalSizeX="2" PhysicalSizeXUnit="mm" PhysicalSizeY="3" PhysicalSizeYUnit="mm"') == (3, 2)
    assert ome_spacing('PhysicalSizeX="2" PhysicalSizeXUnit="inch" PhysicalSizeY="3"') is None
    assert ome_spacing("") is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_a_file_cut_short_is_an_error_and_names_nothing(tmp_path, name):
    rng = np.random.default_rng(0)
    path = saved(tmp_path, Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)), "Jane_Roe_" + name)
    path.write_bytes(path.read_bytes()[:2500])
    with pytest.raises(ReadError, match="damaged or cut short") as caught:
        read_item(path)
    assert "Roe" not in str(caught.value)
    assert "/" not in str(caught.value)


def test_the_limit_on_pixels_is_checked_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(image_reader, "MAX_PIXELS", 63)
    for name in ("a.png", "a.tif"):
        with pytest.raises(ReadError, match=r"8 x 8 pixels in 1 pages, allowed are 63"):
            read_item(saved(tmp_path, Image.new("L", (8, 8)), name))


def test_the_limit_admits_large_histology_beyond_pillows_own(tmp_path, monkeypatch):
    assert image_reader.MAX_PIXELS > 20_000 * 20_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's limit is twice this; ours holds instead
    assert read_item(saved(tmp_path, Image.new("L", (64, 64), 9))).array_CHW.shape == (1, 64, 64)


def test_masks_are_indices_not_colours(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    palette.putdata(indices.flatten().tolist())
    np.testing.assert_array_equal(read_indices(Entry(saved(tmp_path, palette))), indices)
    bits = read_indices(Entry(saved(tmp_path, Image.fromarray(indices > 0))))
    assert bits.dtype == np.uint8
    assert bits.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ReadError, match="one number per pixel, but this picture is RGB"):
        read_indices(Entry(saved(tmp_path, Image.new("RGB", (4, 4)))))


def test_every_picture_of_scikit_image_equals_pillow():
    names = [
        path for path in sorted(SKIMAGE.glob("*.png")) + sorted(SKIMAGE.glob("*.jpg")) if path.stat().st_size < 2e5
    ]
    assert len(names) > 5
    for path in names:
        picture = read_item(path)
        assert isinstance(picture, Picture)
        with Image.open(path) as opened:
            if opened.mode in ("L", "RGB"):
                expected = np.asarray(opened)
                np.testing.assert_array_equal(
                    picture.array_CHW, expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
                )


def test_histology_of_the_microscope_equals_its_exported_png(shared_data):
    folder = shared_data / "open" / "histo_openslide_crops" / "images"
    slide, exported = read_item(folder / "OS-1-detail.ome.tif"), read_item(folder / "Original_image.png")
    np.testing.assert_array_equal(slide.array_CHW, exported.array_CHW)
    assert slide.spacing_mm[1] == pytest.approx(0.000227097, rel=1e-5)

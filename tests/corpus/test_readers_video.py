"""Videos of every container into clips: exact pixels, upright, one rate, and every way in which a file is bad."""

import struct
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import build_dicom
import build_video
from build_video import ONE, moving, write
from medisyn.corpus.readers import read_item, read_series_slices, video
from medisyn.corpus.readers.archive import Entry
from medisyn.corpus.readers.video import constant_rate, open_video, read_clip
from medisyn.errors import ReadError
from medisyn.types import UINT8, Clip

LOSSLESS = [
    ("a.mp4", "libx264rgb", "rgb24", 3),
    ("a.mov", "libx264rgb", "rgb24", 3),
    ("a.mkv", "ffv1", "bgr0", 3),
    ("a.mkv", "ffv1", "gray", 1),
    ("a.avi", "rawvideo", "bgr24", 3),
]


@pytest.mark.parametrize(("name", "codec", "pixel_format", "channels"), LOSSLESS)
@pytest.mark.parametrize("size", [(24, 40), (23, 37)])
def test_lossless_videos_are_read_exactly_also_of_odd_size(tmp_path, name, codec, pixel_format, channels, size):
    clip = moving(7, *size, channels=channels)
    read = read_clip(write(tmp_path / name, clip, codec, pixel_format))
    np.testing.assert_array_equal(read.array_CTHW, clip)
    assert (read.value_range, read.frames_per_second) == (UINT8, 25.0)
    assert read.provenance["resampled"] is False


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_lossy_videos_keep_their_frames_in_order(tmp_path, name, codec):
    """The bar of frame t stands in column 3 t; B-frames come in another order in the file."""
    read = read_clip(write(tmp_path / name, moving(12, 48, 80), codec, "yuv420p", b="2M"))
    assert read.array_CTHW.shape == (3, 12, 48, 80)
    grey_TW = read.array_CTHW.astype(float)[:, :, 24:].sum(axis=(0, 2))
    background_W = np.median(grey_TW, axis=0)
    np.testing.assert_array_equal((grey_TW - background_W).argmax(axis=1), 3 * np.arange(12))


def test_a_gif_equals_what_pillow_reads_and_its_transparent_parts_are_black(tmp_path):
    frames = [Image.fromarray(moving(1, seed=n)[:, 0].transpose(1, 2, 0)).quantize(32) for n in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=80)
    read = read_clip(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        for t in range(4):
            image.seek(t)
            np.testing.assert_array_equal(read.array_CTHW[:, t].transpose(1, 2, 0), np.asarray(image.convert("RGB")))
    assert read.frames_per_second == pytest.approx(12.5)

    clear = [Image.new("P", (16, 16), 1 + n) for n in range(2)]
    for image in clear:
        image.putpalette([9, 9, 9, 200, 100, 50, 50, 100, 200])
        image.paste(0, (0, 0, 8, 16))
    clear[0].save(tmp_path / "b.gif", save_all=True, append_images=clear[1:], transparency=0, disposal=2, duration=100)
    clip = read_clip(tmp_path / "b.gif").array_CTHW
    assert not clip[:, :, :, :8].any()
    assert clip[:, 0, 0, 8].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((0, ONE, -ONE, 0), lambda hw: np.rot90(hw, -1)),  # a phone held upright: turn clockwise
        ((-ONE, 0, 0, -ONE), lambda hw: np.rot90(hw, 2)),
        ((0, -ONE, ONE, 0), lambda hw: np.rot90(hw, 1)),
        ((-ONE, 0, 0, ONE), lambda hw: hw[:, ::-1]),
        ((ONE, 0, 0, -ONE), lambda hw: hw[::-1]),
        ((0, ONE, ONE, 0), lambda hw: hw.T),
        ((0, -ONE, -ONE, 0), lambda hw: np.rot90(hw, 2).T),
        ((ONE, 0, 0, ONE), lambda hw: hw),
    ],
)
def test_a_turned_video_is_shown_upright(tmp_path, matrix, expected):
    clip = moving(3)
    read = read_clip(build_video.turned(write(tmp_path / "a.mp4", clip), *matrix)).array_CTHW
    for channel in range(3):
        np.testing.assert_array_equal(read[channel, 1], expected(clip[channel, 1]))


def test_an_oblique_video_is_refused(tmp_path):
    with pytest.raises(ReadError, match="oblique angle or scaled; export it upright"):
        read_clip(build_video.turned(write(tmp_path / "a.mp4", moving(3)), 46341, 46341, -46341, 46341))


def test_the_aspect_of_the_pixels_is_told_and_turns_with_the_frame(tmp_path):
    path = write(tmp_path / "a.mp4", moving(3), aspect=Fraction(4, 3))
    assert read_clip(path).provenance["pixel_aspect"] == pytest.approx(4 / 3)
    assert read_clip(build_video.turned(path, 0, ONE, -ONE, 0)).provenance["pixel_aspect"] == pytest.approx(3 / 4)


def test_sound_is_ignored_and_sound_alone_is_no_video(tmp_path):
    clip = moving(6)
    read = read_clip(write(tmp_path / "a.mp4", clip, sound_s=2.0))  # longer than the pictures
    np.testing.assert_array_equal(read.array_CTHW, clip)
    np.testing.assert_array_equal(read_clip(write(tmp_path / "a.mkv", clip, sound_s=2.0)).array_CTHW, clip)
    with pytest.raises(ReadError, match="the MP4 file holds no video"):
        read_clip(build_video.sound_only(tmp_path / "b.mp4"))


def test_frames_that_an_edit_list_hides_are_not_shown(tmp_path):
    """A trimmed MP4 keeps its first frames, since others build on them, and begins later: here 5 x 512 ticks."""
    clip = moving(20)
    path = write(tmp_path / "a.mp4", clip)
    content = path.read_bytes()
    at = content.index(b"elst") + 4
    version, entries, milliseconds, first, rate = struct.unpack(">IIIiI", content[at : at + 20])
    trimmed = struct.pack(">IIIiI", version, entries, milliseconds - 200, first + 5 * 512, rate)
    path.write_bytes(content[:at] + trimmed + content[at + 20 :])
    np.testing.assert_array_equal(read_clip(path).array_CTHW, clip[:, 5:])


def test_milliseconds_of_matroska_are_no_variable_rate(tmp_path):
    """At 30 per second MKV writes 0, 33, 67, 100, ... ms."""
    clip = moving(40)
    read = read_clip(write(tmp_path / "a.mkv", clip, "ffv1", "bgr0", rate=30))
    assert (read.frames_per_second, read.provenance["resampled"]) == (30.0, False)
    np.testing.assert_array_equal(read.array_CTHW, clip)


def test_a_variable_rate_is_resampled_to_the_median_gap(tmp_path):
    """Gaps of 40 ms, one of 160: three frames more. At 120, 160 and 200 ms of 80 ... 240 the nearest frame is shown."""
    times = [0, 40, 80, 240, 280, 320, 360, 370, 400, 440]
    clip = moving(10)
    read = read_clip(write(tmp_path / "a.mp4", clip, times_ms=times))
    picks = [0, 1, 2, 2, 2, 3, 3, 4, 5, 6, 8, 9]  # 160 ms lies between 80 and 240: the earlier one
    np.testing.assert_array_equal(read.array_CTHW, clip[:, picks])
    assert (read.frames_per_second, read.provenance["resampled"]) == (25.0, True)


@example([4, 1, 3], 0)  # half a gap away exactly
@given(st.lists(st.integers(1, 90), min_size=2, max_size=40), st.integers(-500, 500))
def test_every_frame_of_the_constant_rate_is_the_nearest_in_time(gaps, start):
    ticks = np.cumsum([start, *gaps])
    picks, gap = constant_rate(ticks)
    mean = Fraction(sum(gaps), len(gaps))
    if max(abs(int(tick - ticks[0]) - number * mean) for number, tick in enumerate(ticks)) <= mean / 2:
        assert (picks.tolist(), gap) == (list(range(len(ticks))), mean)
        return
    assert float(gap) == np.median(gaps)
    for number, pick in enumerate(picks):
        away = np.abs(ticks - (ticks[0] + number * float(gap)))
        assert away[pick] == away.min()
        assert pick == int(away.argmin())


def test_equal_and_falling_times_are_refused():
    with pytest.raises(ReadError, match="frames of the clip share their times"):
        constant_rate(np.array([0, 0, 0, 0, 9]))
    with pytest.raises(ReadError, match="do not follow each other in time"):
        constant_rate(np.array([0, 40, 20]))


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "container", "text"),
    [
        ("a.mp4", "libx264", "yuv420p", {}, "damaged, cut short or of no known codec"),  # its table stands at the end
        ("a.mp4", "libx264", "yuv420p", {"movflags": "faststart"}, "MP4 file is cut short"),
        ("a.mkv", "libx264", "yuv420p", {}, "MKV file is cut short: its frames end after .* s that it states"),
        ("a.avi", "mjpeg", "yuvj420p", {}, "AVI file is (cut short|damaged)"),
        ("a.gif", "gif", "rgb8", {}, "GIF file is cut short"),
    ],
)
def test_a_video_that_was_cut_short_is_refused(tmp_path, name, codec, pixel_format, container, text):
    path = write(tmp_path / name, moving(60, 48, 80), codec, pixel_format, container=container, b="1M")
    with pytest.raises(ReadError, match=text):
        read_clip(cut(path, 0.7))


def test_damage_in_the_middle_is_not_painted_over(tmp_path):
    path = write(tmp_path / "a.mp4", moving(30, 48, 80))
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + len(content) // 3
    content[at : at + 60] = bytes(byte ^ 0x5A for byte in content[at : at + 60])
    path.write_bytes(bytes(content))
    with pytest.raises(ReadError, match=r"damaged|cannot be decoded"):
        read_clip(path)


def test_frames_without_the_one_they_build_on_are_refused(tmp_path):
    whole = write(tmp_path / "a.mkv", moving(20), g="10", bf="0")
    with pytest.raises(ReadError, match="9 of 19 frames of the MKV file cannot be decoded"):
        read_clip(build_video.without_packets(whole, tmp_path / "b.mkv", [0]))
    with pytest.raises(ReadError, match="MKV file holds no frame that can be decoded"):
        read_clip(build_video.without_packets(whole, tmp_path / "c.mkv", [0, 10]))


def test_one_frame_is_no_clip(tmp_path):
    for name, codec, pixel_format in (("a.mp4", "libx264rgb", "rgb24"), ("a.gif", "gif", "rgb8")):
        with pytest.raises(ReadError, match="holds one frame, and a clip needs at least 2"):
            read_clip(write(tmp_path / name, moving(1), codec, pixel_format))
    Image.fromarray(moving(1)[0, 0]).save(tmp_path / "a.png")
    with pytest.raises(ReadError, match="one frame, and a clip needs at least 2; use the kind whole"):
        read_clip(tmp_path / "a.png")
    with pytest.raises(ReadError, match="holds a volume, not a clip"):
        read_clip(build_dicom.series(tmp_path / "series", [[0, 0, z] for z in range(3)]))


def test_a_video_too_large_for_memory_says_what_to_do(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", moving(10))
    monkeypatch.setattr(video, "MAX_CLIP_BYTES", 10 * 3 * 24 * 40)
    assert read_clip(path).array_CTHW.shape == (3, 10, 24, 40)
    monkeypatch.setattr(video, "MAX_CLIP_BYTES", 10 * 3 * 24 * 40 - 1)
    with pytest.raises(ReadError, match=r"10 frames of 40 x 24 pixels, .* Curate it \(kind clip\)"):
        read_clip(path)


def test_frames_are_chosen_and_repeated_as_they_are_read(tmp_path):
    clip = moving(9)
    opened = open_video(Entry(write(tmp_path / "a.mp4", clip)), "mp4")
    assert len(opened) == 9
    chosen = list(opened.frames(range(1, 8, 3)))
    np.testing.assert_array_equal(np.stack(chosen, axis=1), clip[:, 1:8:3])


def test_frames_that_change_their_size_are_refused(tmp_path):
    paths = [write(tmp_path / f"{side}.avi", moving(3, side, 40), "mjpeg", "yuvj420p") for side in (24, 32)]
    import av

    with (
        av.open(str(paths[0])) as first,
        av.open(str(paths[1])) as second,
        av.open(str(tmp_path / "a.avi"), "w") as out,
    ):
        stream = out.add_stream_from_template(first.streams.video[0])
        packets = [packet for source in (first, second) for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.pts, packet.dts = stream, number, number
            out.mux(packet)
    with pytest.raises(ReadError, match="change their size or kind of colour"):
        read_clip(tmp_path / "a.avi")


def test_a_video_inside_a_zip_and_its_frames_as_pictures(tmp_path):
    clip = moving(3)
    write(tmp_path / "a.mp4", clip)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.mp4", "Doe_Jane.mp4")
    np.testing.assert_array_equal(read_clip(tmp_path / "a.zip").array_CTHW, clip)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.zip", "Doe_Jane.mp4").array_CTHW, clip)
    pictures = read_series_slices(tmp_path / "a.mp4")
    np.testing.assert_array_equal(pictures[2].array_CHW, clip[:, 2])


def test_no_message_holds_a_name(tmp_path):
    (tmp_path / "Doe_Jane.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(40))
    with pytest.raises(ReadError) as caught:
        read_clip(tmp_path / "Doe_Jane.mp4")
    assert "Jane" not in str(caught.value)


def test_stacked_tiff_is_a_clip_without_a_rate(tmp_path):
    clip = moving(4, channels=1)
    pages = [Image.fromarray(clip[0, t]) for t in range(4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    read = read_clip(tmp_path / "a.tif")
    np.testing.assert_array_equal(read.array_CTHW, clip)
    assert read.frames_per_second is None


def shipped(name: str) -> str:
    import pydicom.data

    return pydicom.data.get_testdata_file(name, download=False)


def multi_frame(frames: int, **tags):
    pixels = np.arange(frames * 6, dtype=np.uint8).reshape(frames, 2, 3)
    tags = {"Modality": "US", "NumberOfFrames": frames, "ImageOrientationPatient": None, **tags}
    return pixels, build_dicom.image(pixels, RescaleSlope=None, RescaleIntercept=None, **tags)


def test_dicom_clips_of_palette_colour_and_of_one_frame(tmp_path):
    dataset = pydicom.dcmread(shipped("examples_palette.dcm"))
    single = read_item(Path(shipped("examples_palette.dcm"))).array_CHW
    dataset.NumberOfFrames, dataset.PixelData = 3, dataset.PixelData[: dataset.Rows * dataset.Columns] * 3
    dataset.FrameTime = 50
    dataset.save_as(tmp_path / "a.dcm")
    clip = read_clip(tmp_path / "a.dcm")
    assert (clip.array_CTHW.shape[:2], clip.frames_per_second) == ((3, 3), 20.0)
    np.testing.assert_array_equal(clip.array_CTHW[:, 2], single)
    with pytest.raises(ReadError, match="one frame, and a clip needs at least 2"):
        read_clip(Path(shipped("examples_palette.dcm")))


def test_a_dicom_clip_with_a_time_per_frame(tmp_path):
    """Steps of 40 ms and one of 120: the frame before the pause is shown twice, the one after it once more."""
    pixels, dataset = multi_frame(5, FrameTimeVector=[0, 40, 120, 40, 40])
    clip = read_clip(build_dicom.save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(clip.array_CTHW[0], pixels[[0, 1, 1, 2, 2, 3, 4]])
    assert (clip.frames_per_second, clip.provenance["resampled"]) == (25.0, True)
    pixels, dataset = multi_frame(5, FrameTimeVector=[0, 33.3, 33.4, 33.3, 33.4])
    even = read_clip(build_dicom.save(dataset, tmp_path / "b.dcm"))
    np.testing.assert_array_equal(even.array_CTHW[0], pixels)
    assert even.frames_per_second == pytest.approx(4 / 0.1334)
    assert isinstance(even, Clip)


def test_a_wrong_time_vector_is_refused(tmp_path):
    _, dataset = multi_frame(5, FrameTimeVector=[0, 40, 40])
    with pytest.raises(ReadError, match="FrameTimeVector holds 3 times for 5 frames"):
        read_clip(build_dicom.save(dataset, tmp_path / "a.dcm"))
    _, dataset = multi_frame(3, FrameTimeVector=[0, 40, -80])
    with pytest.raises(ReadError, match="do not follow each other in time"):
        read_clip(build_dicom.save(dataset, tmp_path / "b.dcm"))


def test_real_ultrasound_clips(shared_data):
    clips = sorted((shared_data / "measure-only" / "us_video_covidblues" / "videos").glob("patient_5_*.mp4"))
    for path, frames in zip(clips, (61, 61, 7), strict=True):
        opened = open_video(Entry(path), "mp4")
        assert (len(opened), opened.height, opened.width, opened.frames_per_second) == (frames, 350, 350, 25.0)
    cine = read_clip(shared_data / "open" / "dicom_us_clip" / "examples_ybr_color.dcm")
    assert cine.array_CTHW.shape == (3, 30, 240, 320)
    assert cine.frames_per_second == pytest.approx(30, abs=0.01)

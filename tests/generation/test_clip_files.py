"""Files of a clip: every pixel comes back from the lossless one, the record from each, and viewers play the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pydicom
import pytest
from PIL import Image

from medisyn.errors import InputError, ReadError
from medisyn.generation import provenance
from medisyn.generation.clip_files import (
    FORMATS,
    WRITERS,
    read_record,
    write_dicom_clip,
    write_ffv1,
    write_frame_sheet,
    write_gif,
    write_mp4,
)
from medisyn.generation.clip_files.sheet import shown_frames
from medisyn.types import HU, SYMMETRIC, Clip

RECORD = {
    "prompt": 'Apical "four-chamber" view;\nno effusion, 心エコー = <b>&amp;</b>',
    "seed": 2**63 - 1,
    "model": "m",
    "model_digest": "d" * 64,
    "lost_words": "é" * 3000,  # longer than any one piece of a container's tags
}


def clip(channels: int = 3, size: tuple[int, int] = (21, 31), frames: int = 5, rate: float | None = 12.5) -> Clip:
    shape = (channels, frames, *size)
    return Clip(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), frames_per_second=rate)


def smooth(channels: int = 3, size: tuple[int, int] = (32, 48), frames: int = 6) -> Clip:
    """What a codec is made for: a disc that grows on a ramp."""
    row, column = np.mgrid[: size[0], : size[1]]
    made = [
        np.where(np.hypot(row - 15, column - 24) < 6 + t, 200, 40 + column) + 5 * c
        for c in range(channels)
        for t in range(frames)
    ]
    return Clip(np.stack(made).reshape(channels, frames, *size).astype(np.uint8), frames_per_second=8)


def decoded(path: Path) -> np.ndarray:
    """(T, H, W, 3) by PyAV itself."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def as_rgb(one: Clip) -> np.ndarray:
    return np.broadcast_to(one.array_CTHW.transpose(1, 2, 3, 0), (*one.array_CTHW.shape[1:], 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_ffv1_gives_every_pixel_back(tmp_path: Path, channels: int) -> None:
    one = clip(channels)
    write_ffv1(tmp_path / "a.mkv", one, RECORD)
    np.testing.assert_array_equal(decoded(tmp_path / "a.mkv"), as_rgb(one))
    with av.open(str(tmp_path / "a.mkv")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "ffv1"
        assert float(stream.average_rate) == 12.5


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4_is_what_players_and_browsers_take(tmp_path: Path, channels: int) -> None:
    one = smooth(channels)
    write_mp4(tmp_path / "a.mp4", one, RECORD)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (float(stream.average_rate), stream.frames) == (8.0, 6)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is all there
    # yuv has 220 levels of grey, and colour at half the resolution; CRF 17 adds little
    assert np.abs(decoded(tmp_path / "a.mp4").astype(int) - as_rgb(one)).mean() < 3


@pytest.mark.parametrize(("size", "even"), [((21, 31), (22, 32)), ((16, 31), (16, 32)), ((7, 4), (8, 4))])
def test_odd_sides_of_an_mp4_repeat_their_last_line(
    tmp_path: Path, size: tuple[int, int], even: tuple[int, int]
) -> None:
    flat = Clip(np.full((3, 3, *size), 90, np.uint8))
    write_mp4(tmp_path / "a.mp4", flat, RECORD)
    found = decoded(tmp_path / "a.mp4")
    assert found.shape == (3, *even, 3)
    assert np.abs(found.astype(int) - 90).max() <= 2  # also where a line was added: not black


def test_gif_is_exact_for_grey_and_loops(tmp_path: Path) -> None:
    one = clip(1)
    write_gif(tmp_path / "a.gif", one, RECORD)
    np.testing.assert_array_equal(decoded(tmp_path / "a.gif"), as_rgb(one))
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.info["duration"], image.info["loop"]) == (80, 0)  # 12.5 a second
    grey_rgb = Clip(np.repeat(one.array_CTHW, 3, axis=0))
    write_gif(tmp_path / "b.gif", grey_rgb, RECORD)
    np.testing.assert_array_equal(decoded(tmp_path / "b.gif"), as_rgb(one))


@pytest.mark.parametrize("name", FORMATS)
def test_record_comes_back_and_the_same_clip_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    WRITERS[name](path, clip(), RECORD)
    found = read_record(path)
    assert {key: found[key] for key in RECORD} == RECORD
    assert found["notice"] == "Synthetic image. Not for diagnostic use."
    assert found["software"].startswith("medisyn ")
    first = path.read_bytes()
    WRITERS[name](path, clip(), RECORD)
    if name == "mp4":  # for viewing alone: the encoder was once seen to choose other sizes under load
        assert read_record(path) == found
    else:
        assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["mkv", "mp4"])
def test_any_player_shows_the_prompt_and_the_notice(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / f"a.{name}", clip(), {**RECORD, "notice": "Synthetic."})
    with av.open(str(tmp_path / f"a.{name}")) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    assert (tags["title"], tags["comment"]) == (RECORD["prompt"], "Synthetic.")


def test_a_clip_without_a_rate_plays_at_8(tmp_path: Path) -> None:
    write_ffv1(tmp_path / "a.mkv", clip(rate=None), RECORD)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.video[0].average_rate == 8


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (Clip(np.zeros((2, 4, 8, 8), np.uint8)), "1 or 3 channels of uint8 from 0 to 255; got 2 of uint8"),
        (Clip(np.zeros((3, 4, 8, 8), np.float32), SYMMETRIC), r"got 3 of float32 \(symmetric\)"),
        (Clip(np.zeros((1, 4, 8, 8), np.int16), HU), r"got 1 of int16 \(hu\)"),
        (Clip(np.zeros((3, 1, 8, 8), np.uint8)), "a clip has 2 frames or more, got 1"),
        (clip(rate=1000.0), "plays at 0.1 to 240 frames per second, got 1000"),
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_clip_is_refused(tmp_path: Path, name: str, one: Clip, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WRITERS[name](tmp_path / f"a.{name}", one, RECORD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_that_does_not_say_what_made_the_clip(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="lacks seed, model, model_digest"):
        WRITERS[name](tmp_path / f"a.{name}", clip(), {"prompt": "x"})


def test_files_without_a_record_of_ours(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.width, stream.height = 16, 16
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode())
    with pytest.raises(ReadError, match=r"a\.mp4: holds no MediSyn record"):
        read_record(tmp_path / "a.mp4")
    Image.new("L", (4, 4)).save(tmp_path / "a.gif", comment=b"{nonsense")
    with pytest.raises(ReadError, match=r"a\.gif: its MediSyn record is damaged"):
        read_record(tmp_path / "a.gif")
    for name, message in (("b.mp4", "not a readable video"), ("b.gif", "not a readable GIF")):
        (tmp_path / name).write_bytes(b"x" * 100)
        with pytest.raises(ReadError, match=message):
            read_record(tmp_path / name)


# ---- the sheet of frames


def test_shown_frames_by_hand() -> None:
    assert shown_frames(2) == [0, 1]
    assert shown_frames(8) == list(range(8))
    assert shown_frames(15) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert shown_frames(32)[0] == 0
    assert shown_frames(32)[-1] == 31
    assert len(shown_frames(32)) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_holds_the_frames_as_they_are(tmp_path: Path, channels: int) -> None:
    one = clip(channels, frames=15)
    write_frame_sheet(tmp_path / "a.png", one, RECORD)
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    for column, t in enumerate(shown_frames(15)):
        np.testing.assert_array_equal(pixels[:21, column * 33 : column * 33 + 31], as_rgb(one)[t])
    assert pixels[21:].max() > 100  # times and caption stand below
    assert provenance.read(tmp_path / "a.png")["seed"] == RECORD["seed"]


# ---- DICOM


@pytest.mark.parametrize("channels", [1, 3])
def test_dicom_holds_the_frames_and_says_that_they_are_synthetic(tmp_path: Path, channels: int) -> None:
    one = clip(channels)
    write_dicom_clip(tmp_path / "a.dcm", one, RECORD)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    expected = one.array_CTHW.transpose(1, 2, 3, 0)
    np.testing.assert_array_equal(found.pixel_array, expected[..., 0] if channels == 1 else expected)
    assert found.SOPClassUID.name == "Ultrasound Multi-frame Image Storage"
    assert found[0x0008001C].value == "YES"
    assert list(found.ImageType) == ["DERIVED", "SECONDARY"]
    assert found.PatientName.family_name == "SYNTHETIC"
    assert "not for diagnostic use" in found.SeriesDescription
    assert (found.NumberOfFrames, found.FrameTime, found.FrameIncrementPointer) == (5, 80.0, 0x00181063)
    assert found.PhotometricInterpretation == ("RGB" if channels == 3 else "MONOCHROME2")
    first = (tmp_path / "a.dcm").read_bytes()
    write_dicom_clip(tmp_path / "a.dcm", one, RECORD)
    assert (tmp_path / "a.dcm").read_bytes() == first
    changed = Clip(255 - one.array_CTHW, frames_per_second=12.5)
    write_dicom_clip(tmp_path / "b.dcm", changed, RECORD)
    other = pydicom.dcmread(tmp_path / "b.dcm")
    assert other.SOPInstanceUID != found.SOPInstanceUID
    assert other.StudyInstanceUID == found.StudyInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("channels", [1, 3])
def test_dciodvfy_finds_nothing_but_the_tag_it_does_not_know(tmp_path: Path, channels: int) -> None:
    write_dicom_clip(tmp_path / "a.dcm", clip(channels), RECORD)
    done = subprocess.run(["dciodvfy", str(tmp_path / "a.dcm")], capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Warning"))]
    known = ("(0x0008,0x001c)", "Standard Extended SOP Class", "permitted to be empty when actually unknown")
    assert [line for line in lines if not any(part in line for part in known)] == []


def test_the_json_in_a_file_is_plain_ascii(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", clip(), RECORD)
    with av.open(str(tmp_path / "a.mp4")) as container:
        text = container.metadata["synopsis"]
    assert text.isascii()
    assert json.loads(text)["prompt"] == RECORD["prompt"]

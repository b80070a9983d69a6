"""A clip as a video file: H.264 in MP4, FFV1 in Matroska, animated GIF; the record of how it was made inside each.

Shapes here: T frames, H, W pixels, C channels (1 or 3).

    .mkv   FFV1, lossless: every pixel comes back as it was. What `medisyn evaluate` reads
    .mp4   H.264, yuv420p, nearly lossless (CRF 17): plays everywhere. An odd height or width gets its last row or
           column once more, because 4:2:0 colour needs even sides
    .gif   256 colours a frame, so exact for grey clips; frame times are whole hundredths of a second, and frames that
           equal the one before are merged with it

The same clip and record give the same bytes as .mkv and .gif on one version of the libraries; .mp4 is for viewing.
Files are whole or absent.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from medisyn import runs
from medisyn.errors import InputError, ReadError
from medisyn.generation.volume_files.record import full_record, record_json
from medisyn.types import UINT8, Clip

FORMATS = ("mkv", "mp4", "gif")  # the first one that a folder has of a clip is the one to measure
FRAMES_PER_SECOND = 8.0  # of a clip whose rate is not known: that of HiGen's own output
RECORD, NOTICE, PROMPT = "synopsis", "comment", "title"  # tags that both containers know
CRF = 17


def frames_THWC(clip: Clip) -> np.ndarray:
    """A generated clip as (T, H, W, C) uint8, C is 1 or 3, T is 2 or more. Raises InputError for anything else."""
    channels, num_frames = clip.array_CTHW.shape[:2]
    if clip.value_range != UINT8 or clip.array_CTHW.dtype != np.uint8 or channels not in (1, 3):
        raise InputError(
            f"video files hold 1 or 3 channels of uint8 from 0 to 255; got {channels} of {clip.array_CTHW.dtype} "
            f"({clip.value_range.unit})"
        )
    if num_frames < 2:
        raise InputError(f"a clip has 2 frames or more, got {num_frames}; a single frame is a picture")
    return np.ascontiguousarray(clip.array_CTHW.transpose(1, 2, 3, 0))


def rate_of(clip: Clip) -> float:
    """Frames per second at which the clip is played: its own, or 8 where it has none."""
    rate = FRAMES_PER_SECOND if clip.frames_per_second is None else float(clip.frames_per_second)
    if not 0.1 <= rate <= 240:
        raise InputError(f"a clip plays at 0.1 to 240 frames per second, got {rate:g}")
    return rate


def write_ffv1(path: Path, clip: Clip, record: Mapping[str, Any]) -> None:
    """The lossless file. FFV1 level 3 with a checksum for each slice, so that damage is found when it is read."""
    frames, pixels = frames_THWC(clip), "gray" if clip.array_CTHW.shape[0] == 1 else "bgr0"
    options = {"level": "3", "slicecrc": "1"}
    runs.write_bytes(path, _encoded(frames, rate_of(clip), record, ("matroska", "ffv1", pixels), options))


def write_mp4(path: Path, clip: Clip, record: Mapping[str, Any]) -> None:
    """The file for viewing; see the head of this file for what happens to odd sides."""
    frames = frames_THWC(clip)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    options = {"crf": str(CRF), "preset": "medium"}
    runs.write_bytes(path, _encoded(frames, rate_of(clip), record, ("mp4", "libx264", "yuv420p"), options))


def write_gif(path: Path, clip: Clip, record: Mapping[str, Any]) -> None:
    """An animation that runs for ever, the record in its comment."""
    from PIL import Image

    frames, content = frames_THWC(clip), full_record(record)
    pictures = [Image.fromarray(frame[:, :, 0] if _is_grey(frames) else frame) for frame in frames]
    stream = io.BytesIO()
    pictures[0].save(
        stream,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(100 / rate_of(clip)) * 10),  # milliseconds; viewers slow down what is below 20
        loop=0,
        comment=record_json(content).encode("ascii"),
    )
    runs.write_bytes(path, stream.getvalue())


Writer = Callable[[Path, Clip, Mapping[str, Any]], None]
WRITERS: Mapping[str, Writer] = {"mkv": write_ffv1, "mp4": write_mp4, "gif": write_gif}


def read_record(path: Path) -> dict[str, Any]:
    """The record inside a .mkv, .mp4 or .gif of MediSyn, without decoding its frames.

    Raises ReadError when the file is no video or holds no record.
    """
    text = _gif_comment(path) if path.suffix.lower() == ".gif" else _tags(path).get(RECORD)
    if not text:
        raise ReadError(f"{path.name}: holds no MediSyn record; it was made or saved again by another program")
    try:
        return dict(json.loads(text))
    except (json.JSONDecodeError, TypeError, ValueError):
        raise ReadError(f"{path.name}: its MediSyn record is damaged") from None


def _is_grey(frames: np.ndarray) -> bool:
    return bool((frames == frames[..., :1]).all())


def _encoded(
    frames: np.ndarray,
    rate: float,
    record: Mapping[str, Any],
    how: tuple[str, str, str],
    options: Mapping[str, str],
) -> bytes:
    """The file's bytes; `how` is container, codec and pixel format. One thread: more would change the bytes."""
    import av

    container, codec, pixel_format = how
    content = full_record(record)
    source = "gray" if pixel_format == "gray" else "rgb24"
    if source == "rgb24" and frames.shape[3] == 1:
        frames = np.repeat(frames, 3, axis=3)
    flags = {"fflags": "+bitexact", **({"movflags": "+faststart"} if container == "mp4" else {})}
    with tempfile.TemporaryDirectory(prefix="medisyn-clip-") as place:  # faststart writes the file a second time
        path = Path(place) / "clip"
        with av.open(str(path), "w", format=container, container_options=flags) as output:
            tags = {PROMPT: str(content["prompt"]), NOTICE: str(content["notice"]), RECORD: record_json(content)}
            for name, value in tags.items():
                output.metadata[name] = value
            stream: Any = output.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=dict(options))
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
            stream.codec_context.thread_count = 1
            for frame in frames:
                picture = frame[:, :, 0] if source == "gray" else frame
                output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source)))
            output.mux(stream.encode())
        return path.read_bytes()


def _tags(path: Path) -> dict[str, str]:
    """The container's tags by their lower-case names."""
    import av

    try:
        with av.open(str(path)) as container:
            return {str(name).lower(): str(value) for name, value in container.metadata.items()}
    except (av.FFmpegError, OSError) as error:
        raise ReadError(f"{path.name}: not a readable video ({type(error).__name__})") from None


def _gif_comment(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["GIF"]) as image:
            return bytes(image.info.get("comment", b"")).decode("ascii", errors="replace")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ReadError(f"{path.name}: not a readable GIF ({type(error).__name__})") from None

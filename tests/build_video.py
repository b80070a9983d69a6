"""Small videos for the corpus tests, written with PyAV: a bar that moves over gradients, in any container."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

ONE = 65536  # 1.0 in a display matrix of MP4


def moving(frames: int = 8, height: int = 24, width: int = 40, seed: int = 0, channels: int = 3) -> np.ndarray:
    """A bar over gradients and a patch of noise, (C, T, H, W) uint8; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    clip = np.zeros((channels, frames, height, width), dtype=np.uint8)
    clip[0] = np.linspace(0, 200, width).astype(np.uint8)
    if channels == 3:
        clip[1] = np.linspace(0, 200, height).astype(np.uint8)[:, None]
    coarse = rng.integers(0, 200, (channels, 1, 4, 4), dtype=np.uint8).repeat(height // 8, 2).repeat(width // 8, 3)
    clip[:, :, : coarse.shape[2], : coarse.shape[3]] = coarse
    for t in range(frames):
        clip[:, t, :, (3 * t + seed) % width] = 255
    return clip


def write(
    path: Path,
    clip_CTHW: np.ndarray,
    codec: str = "libx264rgb",
    pixel_format: str = "rgb24",
    *,
    rate: int = 25,
    times_ms: Sequence[int] | None = None,
    sound_s: float = 0.0,
    aspect: Fraction | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A video file whose container follows from the suffix; lossless by default (x264 in RGB at qp 0)."""
    if codec.startswith("libx264") and not options:
        options = {"qp": "0", "preset": "ultrafast"}
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = clip_CTHW.shape[2:]
        stream.pix_fmt = pixel_format
        if aspect is not None:
            stream.sample_aspect_ratio = aspect
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream("aac", rate=8000, layout="mono") if sound_s else None
        for t in range(clip_CTHW.shape[1]):
            frame = _frame(clip_CTHW[:, t]).reformat(format=pixel_format)
            frame.pts, frame.time_base = (
                (t, Fraction(1, rate)) if times_ms is None else (times_ms[t], Fraction(1, 1000))
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            _add_sound(out, sound, sound_s)
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        _add_sound(out, out.add_stream("aac", rate=8000, layout="mono"), 1.0)
    return path


def without_packets(source: Path, path: Path, dropped: Sequence[int]) -> Path:
    """A copy of the video stream without some packets (numbers in the order of the file)."""
    with av.open(str(source)) as read, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            if number not in dropped:
                packet.stream = stream
                out.mux(packet)
    return path


def turned(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the track header of an MP4 file."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # version, flags, times, ids, layer, group and volume come first
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + matrix + content[at + 36 :])
    return path


def _frame(frame_CHW: np.ndarray) -> av.VideoFrame:
    if len(frame_CHW) == 1:
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_CHW[0]), format="gray")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_CHW.transpose(1, 2, 0)), format="rgb24")


def _add_sound(out: Any, stream: Any, seconds: float) -> None:
    for start in range(0, int(8000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))

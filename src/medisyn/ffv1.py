"""Clips as FFV1 in Matroska: lossless, every frame on its own, and the same bytes for the same frames.

Shapes here: C channels (1 grey, 3 RGB), T frames, H, W height and width.
Grey is stored as `gray` and RGB as `bgr0`, the two 8-bit forms that FFV1 takes without a change of colour space.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from medisyn.errors import CorpusError

if TYPE_CHECKING:
    import av

DEFAULT_RATE = 10.0  # frames per second at which a player shows a clip without a rate, such as a volume's slices
SLOWEST, FASTEST = 0.01, 500.0  # rates that Matroska, which counts milliseconds, can hold; the index holds the true one
BIT_EXACT = "+bitexact"  # no date, no random id, no name of the program: two runs write the same file
# g 1: every frame can be decoded alone. slicecrc: a changed byte is found.
CODEC_OPTIONS = {"level": "3", "g": "1", "slices": "4", "slicecrc": "1", "flags": BIT_EXACT}


def encode(frames: Iterable[np.ndarray], frames_per_second: float | None = None) -> bytes:
    """Frames (C, H, W) uint8 of one shape, C 1 or 3, as a Matroska file; held are one frame and the file."""
    import av

    shown = min(max(frames_per_second or DEFAULT_RATE, SLOWEST), FASTEST)
    sink, rate = io.BytesIO(), Fraction(shown).limit_denominator(1001)
    with av.open(sink, "w", format="matroska", options={"fflags": BIT_EXACT}) as container:
        stream = None
        for number, frame_CHW in enumerate(frames):
            if stream is None:
                stream = container.add_stream("ffv1", rate=rate, options=CODEC_OPTIONS)
                stream.height, stream.width = frame_CHW.shape[1:]
                stream.pix_fmt = pixel_format = "gray" if len(frame_CHW) == 1 else "bgr0"
                stream.codec_context.thread_count = 1  # curation has a process per core already
            frame = _to_frame(frame_CHW, pixel_format)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        assert stream is not None, "a clip without frames"
        container.mux(stream.encode(None))
    return sink.getvalue()


def decode(content: bytes, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The frames `start` up to, not including, `stop` as (C, T, H, W) uint8; the others are not decoded.

    Raises CorpusError when the content is no such file, or holds fewer frames.
    """
    import av

    try:
        with av.open(io.BytesIO(content), "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frames = [_to_array(frame) for frame in _decoded(container, stream, start, stop)]
    except (av.FFmpegError, IndexError) as error:
        raise CorpusError(f"a clip is not readable FFV1 ({type(error).__name__})") from None
    if not frames or (stop is not None and len(frames) != stop - start):
        raise CorpusError(f"a clip has no frames {start} to {'the end' if stop is None else stop - 1}")
    return np.stack(frames, axis=1)


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, start: int, stop: int | None
) -> Iterator[av.VideoFrame]:
    """Every packet is one whole frame, so those outside the window are passed by."""
    packets = (packet for packet in container.demux(stream) if packet.size)
    for number, packet in enumerate(packets):
        if stop is not None and number >= stop:
            return
        if number >= start:
            yield from packet.decode()


def _to_frame(frame_CHW: np.ndarray, pixel_format: str) -> av.VideoFrame:
    import av

    channels, height, width = frame_CHW.shape
    frame = av.VideoFrame(width, height, pixel_format)
    plane = frame.planes[0]
    rows = np.zeros((height, plane.line_size), dtype=np.uint8)
    if channels == 1:
        rows[:, :width] = frame_CHW[0]
    else:
        rows[:, : 4 * width].reshape(height, width, 4)[..., :3] = frame_CHW[::-1].transpose(1, 2, 0)
    plane.update(rows.tobytes())
    return frame


def _to_array(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as (C, H, W)."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)[: frame.height]
    if frame.format.name == "gray":
        return rows[None, :, : frame.width].copy()
    return rows[:, : 4 * frame.width].reshape(frame.height, frame.width, 4)[..., 2::-1].transpose(2, 0, 1).copy()

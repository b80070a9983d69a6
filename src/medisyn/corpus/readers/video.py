"""MP4, MOV, MKV, WebM, AVI and GIF into clips, frame by frame, through PyAV.

Shapes here: C channels, T frames, H, W height and width.
Frames are turned upright as the file says, grey stays grey, other colour models become RGB, alpha is flattened on
black, and sound is ignored. A clip has one rate: where the frames lie within half a gap of a regular grid they are
taken one to one; else the grid of the median gap takes the frame whose time is nearest (the earlier of two).
A file that is cut short, or in which a frame cannot be decoded, is refused as a whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medisyn.corpus.readers.archive import Entry
from medisyn.errors import MedisynError, ReadError
from medisyn.types import UINT8, Clip, Picture, Volume

if TYPE_CHECKING:
    import av

MAX_CLIP_BYTES = 2**30  # of decoded frames that are held at once
FEWEST_FRAMES = 2
# Display matrices of the eight ways to lay a frame on its side or mirror it -> (transpose, flip rows, flip columns).
# (a, b, c, d) takes column x and row y of the stored frame to column a x + c y and row b x + d y of the shown one.
UPRIGHT = {
    (1, 0, 0, 1): (False, False, False), (-1, 0, 0, -1): (False, True, True),
    (-1, 0, 0, 1): (False, False, True), (1, 0, 0, -1): (False, True, False),
    (0, 1, -1, 0): (True, False, True), (0, -1, 1, 0): (True, True, False),
    (0, 1, 1, 0): (True, False, False), (0, -1, -1, 0): (True, True, True),
}  # fmt: skip


@dataclass(frozen=True)
class Video:
    """A video file that was looked through: what its frames are, and which of them a constant rate shows.

    `picks` holds for each frame of the clip the number of the stored frame; `times` the ticks of the stored frames.
    Height and width are those of the upright frame, whose pixels are `pixel_aspect` times as wide as high.
    """

    entry: Entry
    kind: str
    height: int
    width: int
    channels: int
    pixel_aspect: float
    frames_per_second: float
    picks: np.ndarray
    times: np.ndarray
    resampled: bool

    def __len__(self) -> int:
        return len(self.picks)

    def frames(self, numbers: range) -> Iterator[np.ndarray]:
        """The frames of ascending `numbers` as (C, H, W) uint8, each decoded when it is asked for.

        Raises ReadError for a damaged frame, and at the end when some could not be decoded.
        """
        wanted, repeats = np.unique(self.picks[numbers.start : numbers.stop : numbers.step], return_counts=True)
        left = dict(zip(self.times[wanted].tolist(), repeats.tolist(), strict=True))
        with self.entry.open() as stream, _reading(self.kind), _opened(stream, self.kind) as (container, video):
            for frame in container.decode(video):
                count = left.pop(frame.pts, 0)
                if count:
                    frame_CHW = self._pixels(frame)
                    yield from (frame_CHW for _ in range(count))
                if not left:
                    return
        raise ReadError(f"{len(left):,} of {len(wanted):,} frames of the {self.kind.upper()} file cannot be decoded")

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        frame_CHW = _pixels_of(frame)
        if frame_CHW.shape != (self.channels, self.height, self.width):
            raise ReadError("the frames of the video change their size or kind of colour; export it with one size")
        return frame_CHW


def read_clip(path: Path | str, member: str | None = None) -> Clip:
    """A video, a multi-frame DICOM or a TIFF stack as a Clip (C, T, H, W); `member` names a file inside a zip.

    Provenance holds "pixel_aspect" and, of a video, "resampled". Raises ReadError for a file that is damaged or no
    clip, that has fewer than 2 frames, or whose frames pass MAX_CLIP_BYTES.
    """
    from medisyn.corpus.readers import read_item

    item = read_item(Path(path), member)
    if isinstance(item, Picture):
        raise ReadError("the file holds one frame, and a clip needs at least 2; use the kind whole")
    if isinstance(item, Volume):
        raise ReadError("the file holds a volume, not a clip; the kind clip of a source takes its slices in order")
    return item


def read_video(entry: Entry, kind: str) -> Clip:
    """A whole video as a Clip. Raises ReadError as `read_clip` does."""
    video = open_video(entry, kind)
    size = len(video) * video.channels * video.height * video.width
    if size > MAX_CLIP_BYTES:
        raise ReadError(
            f"the video has {len(video):,} frames of {video.width} x {video.height} pixels, {size / 1e9:.1f} GB when "
            f"decoded; at most {MAX_CLIP_BYTES / 1e9:.1f} GB are opened at once. Curate it (kind clip), which goes "
            f"frame by frame, or cut it"
        )
    array_CTHW = np.empty((video.channels, len(video), video.height, video.width), dtype=np.uint8)
    for number, frame_CHW in enumerate(video.frames(range(len(video)))):
        array_CTHW[:, number] = frame_CHW
    provenance = {"format": kind, "pixel_aspect": video.pixel_aspect, "resampled": video.resampled}
    return Clip(array_CTHW, UINT8, video.frames_per_second, provenance)


def open_video(entry: Entry, kind: str) -> Video:
    """Look through a video without decoding more than its first frame.

    Raises ReadError for a file that holds no video, is cut short, or has fewer than 2 frames.
    """
    if kind == "gif":
        _require_gif_end(entry)
    with entry.open() as stream, _reading(kind), _opened(stream, kind) as (container, video):
        times, first, end, is_cut = _look_through(container, video)
        name = kind.upper()
        if is_cut:
            raise ReadError(f"the {name} file is cut short: its last packet is incomplete. Copy it again")
        if first is None or not times:
            raise ReadError(f"the {name} file holds no frame that can be decoded")
        if len(times) < FEWEST_FRAMES:
            raise ReadError(f"the {name} file holds one frame, and a clip needs at least {FEWEST_FRAMES}")
        ticks = np.array(sorted(times), dtype=np.int64)
        _require_whole(container, video, ticks, end, name)
        picks, gap = constant_rate(ticks)
        resampled = len(picks) != len(ticks) or bool((picks != np.arange(len(ticks))).any())
        rate = float(1 / (gap * video.time_base))
        stated = float(video.average_rate or 0)
        channels, height, width = _pixels_of(first).shape
        aspect = float(video.sample_aspect_ratio or 1)
        return Video(
            entry, kind, height, width, channels,
            pixel_aspect=1 / aspect if _way_up(first)[0] else aspect,
            # Timestamps are rounded (MKV: to milliseconds), so the rate that the file states is the better one.
            frames_per_second=stated if not resampled and abs(stated / rate - 1) < 0.02 else rate,
            picks=picks,
            times=ticks,
            resampled=resampled,
        )  # fmt: skip


def constant_rate(ticks: np.ndarray) -> tuple[np.ndarray, Fraction]:
    """Which stored frame each frame of a constant rate shows, and the gap between these frames in ticks.

    `ticks` ascend. Raises ReadError where they do not, and when the median gap is 0.
    """
    if (np.diff(ticks) < 0).any():
        raise ReadError("the frames of the clip do not follow each other in time")
    length, gaps = int(ticks[-1] - ticks[0]), len(ticks) - 1
    away = np.abs((ticks - ticks[0]) * gaps - np.arange(len(ticks)) * length)  # times the gaps: whole numbers, exact
    if length > 0 and 2 * away.max() <= length:
        return np.arange(len(ticks)), Fraction(length, gaps)
    gap = Fraction(float(np.median(np.diff(ticks))))
    if gap == 0:
        raise ReadError("the frames of the clip share their times; export it with a constant rate")
    grid = ticks[0] + np.arange(round((ticks[-1] - ticks[0]) / float(gap)) + 1) * float(gap)
    after = np.clip(np.searchsorted(ticks, grid), 1, len(ticks) - 1)
    return after - (grid - ticks[after - 1] <= ticks[after] - grid), gap


def _look_through(
    container: av.container.InputContainer, video: av.VideoStream
) -> tuple[list[int], av.VideoFrame | None, int, bool]:
    """The times of all frames that are shown, the first frame, when the last ends, and whether a packet is cut."""
    times: list[int] = []
    first, end, is_cut = None, 0, False
    for packet in container.demux(video):
        if packet.size == 0 or packet.pts is None:
            continue
        is_cut = is_cut or packet.is_corrupt
        end = max(end, packet.pts + (packet.duration or 0))
        if not packet.is_discard:
            times.append(packet.pts)
        if first is None and not is_cut:
            first = next(iter(packet.decode()), None)
    return times, first if first is not None else next(iter(video.decode(None)), None), end, is_cut


def _require_whole(
    container: av.container.InputContainer, video: av.VideoStream, ticks: np.ndarray, end: int, name: str
) -> None:
    """Refuse a file whose frames end well before the time that its header states."""
    tick, stated = float(video.time_base or 0), _tagged_seconds(video)
    # Matroska without this tag states one time for all streams, and sound may go on after the last frame.
    if stated is None and video.duration and (name != "MKV" or len(container.streams) == 1):
        stated = video.duration * tick
    found, gap = (end - min(int(ticks[0]), 0)) * tick, float(np.diff(ticks).max()) * tick
    if stated is not None and found + 2 * gap < stated:
        raise ReadError(
            f"the {name} file is cut short: its frames end after {found:.1f} s of the {stated:.1f} s that it states. "
            f"Copy it again"
        )


def _tagged_seconds(video: av.VideoStream) -> float | None:
    """The DURATION tag of a Matroska stream, HH:MM:SS.fraction."""
    parts = video.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _require_gif_end(entry: Entry) -> None:
    """A GIF ends with a semicolon; FFmpeg does not miss it."""
    with entry.open() as stream:
        stream.seek(0, 2)
        stream.seek(max(stream.tell() - 512, 0))
        if not stream.read().rstrip(b"\0").endswith(b";"):
            raise ReadError("the GIF file is cut short. Copy it again")


@contextmanager
def _opened(stream: BinaryIO, kind: str) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; the name of the file never reaches FFmpeg, whose messages quote it."""
    import av

    with av.open(stream) as container:
        video = container.streams.best("video")
        if video is None:
            raise ReadError(f"the {kind.upper()} file holds no video")
        video.codec_context.thread_count = 1  # curation has a process per core already
        video.codec_context.options = {"err_detect": "explode"}  # a broken frame is refused, not painted over
        yield container, video


@contextmanager
def _reading(kind: str) -> Iterator[None]:
    import av

    try:
        yield
    except MedisynError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ReadError(
            f"the {kind.upper()} file is damaged, cut short or of no known codec ({type(error).__name__})"
        ) from None


def _pixels_of(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame, upright, as (1 or 3, H, W) uint8."""
    name = frame.format.name
    if name.startswith(("gray", "mono")):
        frame_HWC = frame.to_ndarray(format="gray")[..., None]
    elif any(component.is_alpha for component in frame.format.components):
        rgba_HWC = frame.to_ndarray(format="rgba")
        alpha_HW1 = rgba_HWC[..., 3:].astype(np.uint16)
        frame_HWC = ((rgba_HWC[..., :3] * alpha_HW1 + 127) // 255).astype(np.uint8)
    else:
        frame_HWC = frame.to_ndarray(format="rgb24")
    transposed, flip_rows, flip_columns = _way_up(frame)
    if transposed:
        frame_HWC = frame_HWC.swapaxes(0, 1)
    frame_HWC = frame_HWC[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return frame_HWC.transpose(2, 0, 1)


def _way_up(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, flip rows, flip columns) by the display matrix of a frame. ReadError for an oblique one."""
    from av.sidedata.sidedata import Type

    found: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if found is None:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(found)[:36])
    key = tuple(round(value / 65536) for value in (a, b, c, d))
    if (
        key not in UPRIGHT
        or max(abs(value / 65536 - whole) for value, whole in zip((a, b, c, d), key, strict=True)) > 0.01
    ):
        raise ReadError("the video says that it is shown at an oblique angle or scaled; export it upright")
    return UPRIGHT[key]

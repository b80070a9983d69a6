"""Videos, multi-frame DICOM, image stacks and volumes as clips: one file, one sample.

Shapes here: C channels, T frames, H, W height and width.
"""

from __future__ import annotations

import numpy as np

from medisyn.corpus.footage import Footage
from medisyn.corpus.opened import OpenFile, Piece
from medisyn.corpus.takes import Clips
from medisyn.errors import ReadError
from medisyn.types import Clip, Volume


def clip_piece(take: Clips, file: OpenFile) -> Piece:
    """The frames, or slices from the feet up, that `take` chooses. Raises ReadError for too few or too many."""
    video = file.video()
    if video is not None:
        footage = Footage(video, _numbers(take, len(video)))
        return Piece("", footage)
    item = file.item(take.modality, take.series)
    if isinstance(item, Volume):
        return Piece("", _of_volume(take, item), {"plane": take.plane})
    if not isinstance(item, Clip):
        raise ReadError("the file holds one frame, and a clip needs at least 2; use the kind whole")
    return Piece("", Footage(item, _numbers(take, item.array_CTHW.shape[1])))


def _of_volume(take: Clips, volume: Volume) -> Footage:
    from medisyn.corpus.readers.nifti import slices

    pictures = slices(volume, take.plane)
    chosen = [pictures[number] for number in _numbers(take, len(pictures))]
    clip = Clip(np.stack([picture.array_CHW for picture in chosen], axis=1), volume.value_range)
    return Footage(clip, range(len(chosen)), chosen[0].spacing_mm)


def _numbers(take: Clips, count: int) -> range:
    first, last = (round(fraction * count) for fraction in take.between)
    numbers = range(first, last, take.every)
    if len(numbers) < 2:
        raise ReadError(f"of {count} frames `between` and `every` leave {len(numbers)}, and a clip needs at least 2")
    if len(numbers) > take.most_frames:
        raise ReadError(
            f"the clip has {len(numbers):,} frames, and at most {take.most_frames:,} are stored. Take every n-th with "
            f"`every`, a part with `between`, or raise `most_frames`"
        )
    return numbers

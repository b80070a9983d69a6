"""A file of a source while it is worked on, and what comes out of it: pieces, or what could not be used."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.corpus import headers
from medisyn.corpus.source import Source, compile_pattern
from medisyn.corpus.table import TableRow, cell, fill
from medisyn.corpus.takes import Boxes, Clips, Mask, SeriesChoice, Slices, Take
from medisyn.errors import ReadError, SeriesError
from medisyn.types import Clip, Picture

if TYPE_CHECKING:
    from medisyn.corpus.footage import Footage
    from medisyn.corpus.readers.dicom_series import Series
    from medisyn.corpus.readers.video import Video


@dataclass(frozen=True)
class Piece:
    """One picture or clip before preprocessing. `suffix` tells it from the other pieces of its file.

    `words` fill the captions, `columns` are cells that only this piece has, `region` is its slab or block.
    """

    suffix: str
    picture: Picture | Footage
    words: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    region: int | None = None
    given: str | None = None


@dataclass(frozen=True)
class Unusable:
    """A piece that cannot be used, and why; the other pieces of its file are."""

    suffix: str
    reason: str


class OpenFile:
    """A file of a source; it is decoded once, however many takes read it."""

    def __init__(self, source: Source, folder: Path, path: Path, row: TableRow, key: str) -> None:
        self.source, self.folder, self.path, self.row, self.key = source, folder, path, row, key

    @functools.lru_cache(maxsize=1)  # noqa: B019 - an OpenFile lives as long as its file is worked on
    def item(self, modality: str | None = None, choice: SeriesChoice | None = None) -> Any:
        from medisyn.corpus.readers import dicom_series, read_item

        if choice is None:
            return read_item(self.path, modality=modality)
        return dicom_series.volume_of(self._one_series(choice))

    def picture(self) -> Picture:
        item = self.item()
        if not isinstance(item, Picture):
            kind = "clip" if isinstance(item, Clip) else "slices"
            raise ReadError(f"expected one picture, the file holds a {type(item).__name__}; use the kind {kind}")
        return item

    def video(self) -> Video | None:
        """The file as a video to be read frame by frame; None where it is none."""
        from medisyn.corpus.readers import sources
        from medisyn.corpus.readers.formats import VIDEO_FORMATS
        from medisyn.corpus.readers.video import open_video

        source = sources(self.path)
        if isinstance(source, list) or (kind := source.format()) not in VIDEO_FORMATS:
            return None
        return open_video(source, kind)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def stored_slices(self, choice: SeriesChoice | None = None) -> list[Picture]:
        """Every slice of the only or chosen series, or of a volume, from the feet up."""
        from medisyn.corpus.readers import read_series_slices

        return read_series_slices(self.path, series=None if choice is None else self._one_series(choice).number)

    def _one_series(self, choice: SeriesChoice) -> Series:
        from medisyn.corpus.readers.dicom_series import listed

        chosen = self.series(choice)
        if len(chosen) > 1:
            raise SeriesError(
                f"{len(chosen)} series meet the conditions of `series` ({listed(chosen)}), and one is needed here. "
                f"Add a condition, or number: 1"
            )
        return chosen[0]

    def series(self, choice: SeriesChoice) -> list[Series]:
        """The series that `choice` means, headers only. Raises SeriesError when there is none."""
        from medisyn.corpus.readers.dicom_series import select

        pattern = None if choice.description is None else compile_pattern(choice.description, "series.description")
        return select(
            self._all_series(),
            modality=choice.modality,
            description=pattern,
            min_slices=choice.min_slices,
            number=choice.number,
        )

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _all_series(self) -> list[Series]:
        from medisyn.corpus.readers.dicom_series import list_series

        return list_series(self.path)

    def header(self, take: Take) -> dict[str, str]:
        """The columns `dicom.<Keyword>` of the file, or of the first image of the series that `take` chooses."""
        from medisyn.corpus.readers.dicom import attributes, attributes_of

        if isinstance(take, Slices | Boxes | Clips) and take.series is not None:
            return headers.cells(attributes_of(self.series(take.series)[0].slices[0].header))
        return headers.cells(attributes(self.path))

    def patient(self) -> str:
        """Who the header says is the patient, to be hashed at once. Raises ReadError for a folder of several."""
        from medisyn.corpus.readers import sources
        from medisyn.corpus.readers.dicom import patient_id_of, patient_id_to_hash

        if isinstance(sources(self.path), list):
            found = {patient_id_of(one.header) for series in self._all_series() for one in series.slices}
            if len(found) > 1:
                raise ReadError(f"the images come from {len(found)} patients; give each patient a folder or zip")
            identity = found.pop()
        else:
            identity = patient_id_to_hash(self.path)
        return cell({headers.PATIENT: identity}, headers.PATIENT, self.source.split.pattern)

    def beside(self, template: str) -> Path:
        """Another file of the source, named by the row."""
        return companion(self.source, self.folder, fill(template, self.row))

    def open_beside(self, template: str) -> OpenFile:
        return OpenFile(self.source, self.folder, self.beside(template), self.row, self.key)


def companion(source: Source, folder: Path, name: str) -> Path:
    """A file that another is read with: in the source's folder, else in the first of `source.folders` that has it."""
    candidates = [folder / name, *(folder / part / name for part in source.folders)]
    return next((path for path in candidates if is_there(path)), candidates[0])


def is_there(path: Path) -> bool:
    """False also for a cell that is too long for a file name, and for a folder that may not be entered."""
    try:
        return path.exists()
    except OSError:
        return False


def slab(file: OpenFile, number: int, count: int) -> int:
    """The slab in which slice `number` of `count` lies, where a volume feeds all splits."""
    return number * file.source.split.regions // count


def mask_names(mask: Mask, values: np.ndarray) -> dict[int, str]:
    """Value -> word, with "" for the values that are left out on purpose."""
    if not mask.others:
        return mask.values
    return {**mask.values, **{int(value): "" for value in np.unique(values) if int(value) not in mask.values}}

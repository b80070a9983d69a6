"""What a source description may take from a DICOM header: the columns `dicom.<Keyword>` of an allow-list.

The patient's id is no such column. It may stand in one place, as `split.column: dicom.PatientID`, and is hashed with
the corpus key where it is read; it is never stored or shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medisyn.corpus.readers.dicom import DERIVED, NUMBER_TAGS, TEXT_TAGS
from medisyn.errors import ConfigError, ReadError, closest
from medisyn.terms import IMAGE_TYPE_OF_MODALITY

PREFIX = "dicom."
PATIENT = "dicom.PatientID"
MODALITY = "dicom.Modality"
COLUMNS = tuple(sorted(f"{PREFIX}{keyword}" for keyword in (*TEXT_TAGS, *NUMBER_TAGS, *DERIVED)))


def is_header(column: str) -> bool:
    return column.startswith(PREFIX)


def check_columns(columns: Iterable[str], where: str) -> None:
    """Raise ConfigError for a `dicom.` column that is not on the allow-list, with the nearest that is."""
    for column in columns:
        if is_header(column) and column not in COLUMNS:
            raise ConfigError(
                f"{where}: {column!r} is not among the DICOM attributes that may enter a corpus."
                f"{closest(column, COLUMNS)} Allowed: {', '.join(COLUMNS)}"
            )


def cells(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Every column of the allow-list as text, "" where the header has none: 5.0 becomes "5", True becomes "yes"."""
    return {column: _text(attributes.get(column.removeprefix(PREFIX))) for column in COLUMNS}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value or "")


def image_type(header: Mapping[str, str]) -> str:
    """The image type that the Modality alone decides (CT, MR, US, ...). Raises ReadError for one that it does not."""
    modality = header[MODALITY]
    if modality not in IMAGE_TYPE_OF_MODALITY:
        raise ReadError(
            f"the description gives no image_type, and the Modality ({modality or 'missing'}) does not decide "
            f"it (these do: {', '.join(IMAGE_TYPE_OF_MODALITY)}). Write image_type in the description"
        )
    return IMAGE_TYPE_OF_MODALITY[modality]

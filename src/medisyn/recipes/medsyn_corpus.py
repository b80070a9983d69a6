"""What a MedSyn model is trained on, as the user has it: CT volumes with masks and reports, or reports alone.

A CT corpus is a folder or a zip of one of these, told apart by its content:

    phantoms       what `medisyn phantom ct` writes
    NIfTI folders  <any>/ct.nii.gz with lobe.nii.gz, airway.nii.gz, vessel.nii.gz and report.txt beside it
    NIfTI files    <any>.nii.gz with <any>_lobe.nii.gz (or -lobe), ..._airway, ..._vessel, and <any>.txt
    DICOM          the slices of one series, with the masks and report.txt of a NIfTI folder where there are some

Files are told apart by their order, never named: a file name may be a patient's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from medisyn import runs
from medisyn.errors import ConfigError, CorpusError, InputError, closest
from medisyn.families.medsyn.config import CHANNELS, Grid
from medisyn.types import Sample, Volume

if TYPE_CHECKING:
    import numpy as np

    from medisyn.corpus.readers.archive import Entry

MASKS = CHANNELS[1:]
VOLUME_SUFFIX = re.compile(r"\.(nii|nii\.gz|nrrd)$", re.IGNORECASE)
TABLE_SUFFIXES = (".csv", ".gz", ".jsonl", ".ndjson", ".parquet")
MASK_RULES = ("required", "empty")
REPORT_COLUMNS = ("report", "report_text", "text", "caption")
SECTION_COLUMNS = (
    ("findings_text", "findings_en", "findings"),
    ("impression_text", "impressions_en", "impression", "impressions"),
)  # the first that a table has


@dataclass(frozen=True, kw_only=True)
class CtData:
    """How a CT corpus is read.

    masks   "required", or "empty": a mask without a file is all background, so the model learns CT alone from it
    report  what a CT without a report of its own is trained on; "" refuses such a CT
    finer   a volume that does not fit is resampled to a grid so many times finer than the base model's
    series  which DICOM series of the corpus, counted from 1; None: the only one
    """

    masks: str = "required"
    report: str = ""
    finer: int = 4
    series: int | None = None

    def __post_init__(self) -> None:
        if self.masks not in MASK_RULES:
            raise ConfigError(f"masks must be one of {', '.join(MASK_RULES)}, got {self.masks!r}")
        if self.finer < 1:
            raise ConfigError(f"finer must be at least 1, got {self.finer}")


@dataclass(frozen=True)
class CtFiles:
    """The files of one CT, as names inside the corpus; "" is the corpus itself, as the slices of a series."""

    key: str
    ct: str
    masks: Mapping[str, str] = field(default_factory=dict)
    report: str | None = None


@dataclass(frozen=True)
class CtReader:
    """CT number n of a corpus as a Sample that fits the grid; picklable, and called once per CT and run.

    Its metadata: "spacing_mm" of the scan, "resampled", "covered" and "num_masks" (files that were there).
    """

    corpus: Path
    found: tuple[CtFiles, ...]
    data: CtData
    grid: Grid  # of the base model
    needs_report: bool = True

    def __call__(self, number: int) -> Sample:
        files = self.found[number]
        try:
            return self._read(files)
        except InputError as error:
            raise type(error)(str(error) if files.key in str(error) else f"{files.key}: {error}") from None

    def _read(self, files: CtFiles) -> Sample:
        from medisyn.recipes.medsyn_grid import mask_like, place

        volume = self._volume(files.ct, files.key)
        masks = {name: mask_like(self._file(member), volume, name, files.key) for name, member in files.masks.items()}
        placed = place(
            volume, {**self._missing(masks, volume, files.key), **masks}, self.grid, self.data.finer, files.key
        )
        facts = {
            "spacing_mm": volume.spacing_mm,
            "resampled": placed.resampled,
            "covered": placed.covered,
            "num_masks": len(masks),
        }
        return Sample(files.key, placed.volume, self._report(files), facts, placed.masks)

    def _volume(self, member: str, key: str) -> Volume:
        from medisyn.corpus.readers import read_item

        item = self._file(member, modality="CT") if member else read_item(self.corpus, series=self.data.series)
        if not isinstance(item, Volume) or item.value_range.unit != "hu" or item.array_CDHW.shape[0] != 1:
            raise CorpusError(f"{key}: this is no CT volume of one channel in HU. Leave it out of the corpus.")
        return item

    def _file(self, member: str, modality: str | None = None) -> Volume:
        from medisyn.corpus.readers import read_item

        whole = self.corpus.is_dir()
        item = read_item(self.corpus / member if whole else self.corpus, None if whole else member, modality=modality)
        assert isinstance(item, Volume)  # NIfTI and NRRD give nothing else
        return item

    def _missing(self, masks: Mapping[str, np.ndarray], volume: Volume, key: str) -> dict[str, np.ndarray]:
        import numpy as np

        missing = [name for name in MASKS if name not in masks]
        if missing and self.data.masks == "required":
            raise CorpusError(
                f"{key}: there is no mask of {', '.join(missing)}. Put {missing[0]}.nii.gz beside the CT, or "
                f"train on the CT alone with --set masks=empty: then the model learns no anatomy."
            )
        return {name: np.zeros(volume.array_CDHW.shape[1:], np.uint8) for name in missing}

    def _report(self, files: CtFiles) -> str:
        if not self.needs_report:
            return ""
        text = read_text(self.corpus, files.report) if files.report is not None else self.data.report
        if not text.strip():
            raise CorpusError(
                f"{files.key}: it has no report, or an empty one. Put the text in report.txt beside the CT, or say "
                f"with --set data.report='...' what a CT without one shows."
            )
        return text


def find_cts(corpus: Path) -> tuple[CtFiles, ...]:
    """The CT volumes of a folder or zip, in the order of their names. Raises CorpusError when there is none."""
    names = list(_entries(corpus))
    volumes = [name for name in names if VOLUME_SUFFIX.search(name)]
    folders: dict[str, dict[str, str]] = {}  # folder -> name of a file in it -> the same with its folder
    for name in names:
        folders.setdefault(_parent(name), {})[PurePosixPath(name).name] = name
    found = [files for folder in dict.fromkeys(map(_parent, volumes)) for files in _of_folder(folders[folder])]
    if not found and any(not name.lower().endswith(".txt") and name not in volumes for name in names):
        found = [_dicom(names)]
    if not found:
        raise CorpusError(
            "the corpus holds no CT: give a folder of phantoms, NIfTI files, or the slices of one DICOM series"
        )
    phantoms = all(re.fullmatch(r"thorax-\d+", _parent(files.ct)) for files in found)
    keys = [_parent(files.ct) if phantoms else f"ct-{number:04d}" for number, files in enumerate(found, start=1)]
    return tuple(CtFiles(key, one.ct, one.masks, one.report) for key, one in zip(keys, found, strict=True))


def _entries(corpus: Path) -> dict[str, Entry]:
    """Name inside the corpus -> file, sorted."""
    from medisyn.corpus.readers.archive import entries

    if not corpus.exists():
        raise CorpusError(f"there is no corpus {corpus.name!r}. Give a folder, or a zip file.")
    if corpus.is_file() and corpus.suffix.lower() != ".zip":
        raise CorpusError(f"{corpus.name}: a CT corpus is a folder or a zip file")
    found = entries(corpus)
    return {
        (entry.member if entry.member is not None else entry.path.relative_to(corpus).as_posix()): entry
        for entry in found
    }


def _of_folder(here: dict[str, str]) -> list[CtFiles]:
    """The CTs of one folder of the corpus; `here` maps the names of its files to their names inside the corpus."""
    stems = {VOLUME_SUFFIX.sub("", name): full for name, full in here.items() if VOLUME_SUFFIX.search(name)}
    if "ct" in stems:
        masks = {name: stems[name] for name in MASKS if name in stems}
        return [CtFiles("", stems["ct"], masks, here.get("report.txt"))]
    found = []
    for stem, full in stems.items():
        if re.search(rf"(^|[_-])({'|'.join(MASKS)})$", stem):
            continue
        named = {name: [there for mark in "_-" if (there := stems.get(f"{stem}{mark}{name}"))] for name in MASKS}
        masks = {name: files[0] for name, files in named.items() if files}
        found.append(CtFiles("", full, masks, here.get(f"{stem}.txt")))
    return found


def _dicom(names: list[str]) -> CtFiles:
    """One DICOM series; its masks and report may lie anywhere in the corpus, since there is one CT only."""
    by_name = {VOLUME_SUFFIX.sub("", PurePosixPath(name).name): name for name in names}
    report = next((name for name in names if PurePosixPath(name).name == "report.txt"), None)
    return CtFiles("", "", {name: by_name[name] for name in MASKS if name in by_name}, report)


def _parent(name: str) -> str:
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent


def read_text(corpus: Path, member: str) -> str:
    """A text file of the corpus. Raises CorpusError when it is not UTF-8."""
    from medisyn.corpus.readers.archive import Entry

    entry = Entry(corpus / member) if corpus.is_dir() else Entry(corpus, member)
    with entry.open() as stream:
        content = stream.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CorpusError("a report is not UTF-8 text; save it as UTF-8") from None


def fingerprint(corpus: Path) -> str:
    """A digest of a corpus: names, sizes and first bytes of the files of a folder; all bytes of a file or zip."""
    if corpus.is_file():
        return runs.file_sha256(corpus)[:16]
    listed = []
    for name, entry in _entries(corpus).items():
        if name != "run.json":  # the phantoms' own notes, with the time of day
            head = hashlib.sha256(entry.head()).hexdigest()
            listed.append([name, entry.path.stat().st_size, head])
    return runs.digest(listed)


# ---- reports


@dataclass(frozen=True)
class ReportText:
    """One report; what is needed of a Sample where there are no pixels. Its metadata: "labels"."""

    key: str
    caption: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def find_reports(corpus: Path, labels: Sequence[str] = ()) -> tuple[ReportText, ...]:
    """The reports of a table (CSV, JSONL, Parquet), or of every .txt file of a folder or zip.

    A table has a column report, or findings and impression. `labels` are columns of numbers in [0, 1] of that table, or
    of a folder's table.csv, whose column key names the folders of the reports; an empty cell is NaN, not known.
    Raises CorpusError when there is no report, one is empty, or a label is missing.
    """
    is_table = corpus.is_file() and corpus.suffix.lower() in TABLE_SUFFIXES
    texts = _table_texts(corpus) if is_table else _text_files(corpus)
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise CorpusError(f"report {number} of {len(texts)} is empty. Leave it out, or fill it in.")
    told = _labels(corpus, labels, is_table=is_table) if labels else [() for _ in texts]
    return tuple(
        ReportText(f"report-{number:06d}", text, {"labels": values} if labels else {})
        for number, (text, values) in enumerate(zip(texts, told, strict=True), start=1)
    )


def _labels(corpus: Path, names: Sequence[str], *, is_table: bool) -> list[tuple[float, ...]]:
    """The labels of each report, in the order of the reports."""
    from medisyn.recipes.labels import read_labels

    if is_table:
        return read_labels(corpus, names)
    return read_labels(corpus / "table.csv", names, keys=[_parent(name) for name in _text_names(corpus)])


def _text_files(corpus: Path) -> list[str]:
    names = _text_names(corpus)
    if not names:
        raise CorpusError("the corpus holds no report: give a table (CSV, JSONL, Parquet), or a folder with .txt files")
    return [read_text(corpus, name) for name in names]


def _text_names(corpus: Path) -> list[str]:
    return [name for name in _entries(corpus) if name.lower().endswith(".txt")]


def _table_texts(table: Path) -> list[str]:
    from medisyn.corpus.table import read_table

    rows = read_table(table)
    columns = {name.strip().lower(): name for name in rows[0]}
    findings, impression = (
        next((columns[name] for name in names if name in columns), None) for names in SECTION_COLUMNS
    )
    if findings is not None and impression is not None:
        return [_sections(row[findings], row[impression]) for row in rows]
    for name in REPORT_COLUMNS:
        if name in columns:
            return [row[columns[name]] for row in rows]
    raise CorpusError(
        f"{table.name}: there is neither a column 'report' nor both 'findings' and 'impression'. Columns there: "
        f"{', '.join(rows[0])}.{closest('report', columns)}"
    )


def _sections(findings: str, impression: str) -> str:
    parts = (("Findings", findings), ("Impression", impression))
    return "\n".join(f"{name}: {text}" for name, text in parts if text.strip())

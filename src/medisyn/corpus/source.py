"""A source description: which files and table, what becomes a sample, its caption, its preprocessing, who is a patient.

YAML in, frozen pydantic models out; unknown keys are refused with the nearest known one. `schema()` is the JSON schema.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medisyn.corpus.captions import Template, check_fields, parse
from medisyn.errors import ConfigError, CorpusError, closest
from medisyn.terms import IMAGE_TYPES, SPECIALTIES

SHIPPED = Path(__file__).parent / "sources"
PUBLIC_KEY = b"medisyn: ids of this source are public"  # pseudonyms of public ids need no secret
FALSE_CELLS = ("", "0", "0.0", "-1", "-1.0", "false", "no", "nan", "none")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Table(_Model):
    """A table with one row per file. `path` is CSV (also .gz), JSONL or Parquet in the source's folder."""

    path: str | None = None
    rows: tuple[dict[str, str], ...] = Field(default=(), description="The rows themselves, instead of a file.")
    where: dict[str, str | tuple[str, ...]] = Field(default={}, description="Keep rows whose column has this value.")
    join: Join | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Table:
        if (self.path is None) == (not self.rows):
            raise ValueError("give either path or rows")
        return self


class Join(_Model):
    """A second table whose columns are added where `on` agrees (a row without partner keeps empty cells)."""

    path: str
    on: str


class Files(_Model):
    """Files without a table: `pattern`'s named groups, matched against the relative path, become columns."""

    glob: str
    pattern: str | None = None


class Words(_Model):
    """How a column becomes words for captions and labels.

    column     default: the field's own name
    pattern    regular expression; its first group replaces the cell
    values     cell -> word; a cell that is not listed is an error of that row
    separator  splits a cell with several values ("Mass|Nodule")
    filled     the word for any cell that is not empty, 0 or false
    flags      column -> word, for tables with one column per finding
    positive   the cells of `flags` that count as present; default: all but empty, 0, -1 and false
    counts     the cell is a JSON object word -> count; `most` of them, largest count first
    """

    column: str | None = None
    pattern: str | None = None
    values: dict[str, str] | None = None
    separator: str | None = None
    filled: str | None = None
    flags: dict[str, str] = {}
    positive: tuple[str, ...] | None = None
    counts: bool = False
    most: int = Field(default=3, ge=1)


class Given(_Model):
    """A split that the publisher fixed: column and the split each value means."""

    column: str
    values: dict[str, Literal["train", "validation", "test"]]


class Split(_Model):
    """What may never be divided between splits.

    patient  `column` holds the patient (with `pattern`, its first group): splits are patient-disjoint
    group    `column` holds a lesion, slide or case; patients are unknown
    file     every file on its own; patients are unknown
    region   one file feeds all splits: `regions` slabs of a volume or `regions` x `regions` blocks of a slide;
             files of one `column` value are cut alike
    none     every sample on its own
    """

    unit: Literal["patient", "group", "file", "region", "none"]
    column: str | None = None
    pattern: str | None = None
    regions: int = Field(default=10, ge=3)
    given: Given | None = None

    @model_validator(mode="after")
    def _column(self) -> Split:
        if self.unit in ("patient", "group") and self.column is None:
            raise ValueError(f"unit {self.unit!r} needs a column")
        return self


class Mask(_Model):
    """A mask file of the same shape: values -> words, present when at least `min_pixels` of the picture have the value.

    `file` is a path template over the columns. A value of the mask that has no word is an error, unless `others` says
    that they are left out on purpose.
    """

    file: str
    values: dict[int, str]
    others: bool = False
    min_pixels: int = Field(default=1, ge=1)


class SliceTable(_Model):
    """A table with one row per slice: `position` (mm along the axis) finds the slice, `columns` are added to it."""

    path: str
    position: str
    columns: tuple[str, ...]
    tolerance_mm: float = 1.0


class _Take(_Model):
    captions: tuple[str, ...] = Field(min_length=1, description="One is drawn per sample, fixed by its key.")
    labels: tuple[str, ...] = Field(default=(), description="Templates like captions; empty ones are dropped.")
    fields: dict[str, Words] = {}
    where: dict[str, str | tuple[str, ...]] = {}
    specialty: str | None = None
    image_type: str | None = None
    geometry: str | None = None
    intensity: Literal["as-is", "percentile", "full-range"] = "as-is"
    windows: dict[str, tuple[float, float] | str] = Field(
        default={}, description="CT windows, one sample each: caption word -> [width, level] or a preset's name."
    )
    masks: tuple[Mask, ...] = ()

    builtin: typing.ClassVar[tuple[str, ...]] = ()

    def templates(self) -> list[Template]:
        return [parse(text) for text in self.captions]


class Whole(_Take):
    """The whole picture is one sample (per window). Mask words fill {structures}."""

    kind: Literal["whole"]
    builtin = ("window", "structures")


class Slices(_Take):
    """Slices of a volume. `between` are fractions of its extent along the axis, in the order feet to head (axial)."""

    kind: Literal["slices"]
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    every: int = Field(default=1, ge=1)
    between: tuple[float, float] = (0.0, 1.0)
    modality: str | None = Field(default=None, description="For NIfTI and NRRD, which do not record it: CT or MR.")
    table: SliceTable | None = None
    min_content: float = Field(default=0.05, description="Share of pixels above air (CT) or the lower fifth.")
    builtin = ("window", "structures", "plane")


class Boxes(_Take):
    """Crops around boxes. {class} is the word of the box's class; a class without a word is left out."""

    kind: Literal["boxes"]
    file: str = Field(description="Path template of the annotation, or the column that holds it.")
    format: Literal["voc", "points", "json"]
    classes: dict[str, str]
    side: int = Field(default=64, ge=8, description="Pixels around a point.")
    context: float = Field(
        default=0.1, ge=0, description="Margin on each side, as a share of the longer side of the box."
    )
    min_side: int = Field(default=16, ge=1, description="Boxes with a shorter side are left out.")
    inside: bool = Field(default=True, description="Leave out crops that reach beyond the picture.")
    per_file: dict[str, int] = Field(default={}, description="At most this many of a class per file.")
    cap: dict[str, int] = Field(default={}, description="At most this many of a class in the corpus.")
    builtin = ("class",)


class Level(_Model):
    """A magnification: its name in the caption and micrometres per pixel of the sample."""

    name: str
    mpp: float = Field(gt=0)


class Tiles(_Take):
    """Square tiles of a slide, at most 10 % overlap (MediSyn v2 section 4.1); {magnification} is the level's name."""

    kind: Literal["tiles"]
    mpp: str = Field(description="Column with the slide's micrometres per pixel.")
    levels: tuple[Level, ...] = Field(min_length=1)
    overlap: float = Field(default=0.1, ge=0.0, le=0.1)
    min_tissue: float = Field(
        default=0.25, ge=0, le=1, description="Share of coloured pixels below which it is background."
    )
    builtin = ("magnification",)


class Arrays(_Take):
    """An .npz with stacked pictures. Each array pair gives one sample per picture; {label} is the word of its label."""

    kind: Literal["arrays"]
    pairs: dict[str, str] = Field(description="Array of pictures (N, H, W[, 3]) -> array of labels (N) or (N, 1).")
    classes: dict[int, str]
    splits: dict[str, Literal["train", "validation", "test"]] = Field(default={}, description="The publisher's splits.")
    builtin = ("label",)


Take = Annotated[Whole | Slices | Boxes | Tiles | Arrays, Field(discriminator="kind")]


class Source(_Model):
    """One data set on disk. Its files lie in `root`, below the folder of the description or below `--root`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    licence: str
    attribution: str
    url: str
    root: str = "."
    public_ids: bool = Field(default=False, description="Ids are already public: pseudonyms use a fixed, known key.")
    specialty: str
    image_type: str
    new_terms: bool = Field(default=False, description="Allow a specialty or image type outside medisyn.terms.")
    table: Table | None = None
    files: Files | None = None
    file: str = Field(default="{file}", description="Path template of the image over the columns.")
    folders: tuple[str, ...] = Field(default=(".",), description="Folders in which the file is looked for, in order.")
    split: Split
    fields: dict[str, Words] = {}
    geometry: str = "short-side-crop"
    size: int = Field(default=512, ge=8, description="Pixels of both sides of a sample.")
    samples: tuple[Take, ...] = Field(min_length=1)
    known_defects: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if (self.table is None) == (self.files is None):
            raise ValueError("give either table or files")
        if not self.new_terms:
            for take in self.samples:
                _term(take.specialty or self.specialty, SPECIALTIES, "specialty")
                _term(take.image_type or self.image_type, IMAGE_TYPES, "image_type")
        for take in self.samples:
            known = {*self.fields, *take.fields, *take.builtin}
            for text in (*take.captions, *take.labels):
                check_fields(parse(text), known, text)
        return self

    def words(self, take: _Take) -> dict[str, Words]:
        return {**self.fields, **take.fields}


def _term(word: str, allowed: tuple[str, ...], what: str) -> None:
    if word not in allowed:
        raise ValueError(
            f"{what} {word!r} is not in the list of terms: {', '.join(allowed)}.{closest(word, allowed)} "
            f"Set new_terms: true to add a term on purpose"
        )


def shipped() -> list[str]:
    """Names of the descriptions that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_source(source: str | Path | Source) -> tuple[Source, Path]:
    """A description and the folder its root is relative to. `source` is a YAML file or the name of a shipped one.

    Raises CorpusError when there is none, ConfigError when it breaks the schema.
    """
    if isinstance(source, Source):
        return source, Path()
    path = Path(source)
    if not path.suffix and not path.exists():
        if str(source) not in shipped():
            raise CorpusError(
                f"source {str(source)!r} is neither a YAML file nor one of ours: {', '.join(shipped())}."
                f"{closest(str(source), shipped())}"
            )
        path = SHIPPED / f"{source}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise CorpusError(f"source description {path.name} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"source description {path.name} is not YAML: {' '.join(str(error).split())}") from None
    return parse_source(content, path.name), path.parent


def parse_source(content: Any, name: str = "source") -> Source:
    """Validate a description; every error names the key and the nearest allowed one, all in one ConfigError."""
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: expected a mapping of keys, got {type(content).__name__}")
    try:
        return Source.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(_explain(item) for item in error.errors())) from None


def _explain(error: Any) -> str:
    where = ".".join(str(step) for step in error["loc"])
    if error["type"] == "extra_forbidden":
        allowed = _keys_at(error["loc"][:-1])
        return f"key {where!r} is unknown.{closest(str(error['loc'][-1]), allowed)} Allowed here: {', '.join(allowed)}"
    return f"{where or 'the description'}: {error['msg'].removeprefix('Value error, ')}"


def _keys_at(steps: tuple[Any, ...]) -> list[str]:
    """Keys of the model that a pydantic error location leads to."""
    models: list[type[BaseModel]] = [Source]
    for step in steps:
        tagged = [model for model in models if step in typing.get_args(_kind(model))]
        if tagged:
            models = tagged
        elif isinstance(step, str):
            found = [_models_in(model.model_fields[step].annotation) for model in models if step in model.model_fields]
            models = [model for group in found for model in group] or models
    return sorted({name for model in models for name in model.model_fields})


def _kind(model: type[BaseModel]) -> Any:
    return model.model_fields["kind"].annotation if "kind" in model.model_fields else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def schema() -> dict[str, Any]:
    """The JSON schema of a source description."""
    return Source.model_json_schema()


def compile_pattern(pattern: str, what: str) -> re.Pattern[str]:
    """A regular expression of a description; ConfigError when it does not compile."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{what}: pattern {pattern!r} is not a regular expression ({error})") from None

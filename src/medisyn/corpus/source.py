"""A source description: which files and table, what becomes a sample, its caption, its preprocessing, who is a patient.

YAML in, frozen pydantic models out; unknown keys are refused with the nearest known one. `schema()` is the JSON schema.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from medisyn.corpus import headers
from medisyn.corpus.captions import check_fields, parse
from medisyn.corpus.takes import Model, SeriesSlices, Take, Words
from medisyn.errors import ConfigError, CorpusError, closest
from medisyn.terms import IMAGE_TYPES, SPECIALTIES

SHIPPED = Path(__file__).parent / "sources"
PUBLIC_KEY = b"medisyn: ids of this source are public"  # pseudonyms of public ids need no secret


class Table(Model):
    """A table with one row per file. `path` is CSV (also .gz), JSONL or Parquet in the source's folder."""

    path: str | None = None
    rows: tuple[dict[str, str], ...] = Field(default=(), description="The rows themselves, instead of a file.")
    where: dict[str, str | tuple[str, ...]] = Field(default={}, description="Keep rows whose column has this value.")
    join: Join | None = None
    draw: Draw | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Table:
        if (self.path is None) == (not self.rows):
            raise ValueError("give either path or rows")
        return self


class Join(Model):
    """A second table whose columns are added where `on` agrees (a row without partner keeps empty cells)."""

    path: str
    on: str


class Draw(Model):
    """At most `most` rows of each value of `column`, after `where`: the same rows in every run."""

    column: str
    most: int = Field(ge=1)


class Files(Model):
    """Files without a table: `pattern`'s named groups, matched against the relative path, become columns."""

    glob: str
    pattern: str | None = None


class Given(Model):
    """A split that the publisher fixed: column and the split each value means."""

    column: str
    values: dict[str, Literal["train", "validation", "test"]]


class Split(Model):
    """What may never be divided between splits.

    patient  `column` holds the patient (with `pattern`, its first group): splits are patient-disjoint
    group    `column` holds a lesion, slide or case; patients are unknown
    file     every file on its own; patients are unknown
    region   one file feeds all splits: `regions` slabs of a volume or `regions` x `regions` blocks of a slide;
             files of one `column` value are cut alike
    none     every sample on its own

    `column: dicom.PatientID` takes the patient from the header of the file; only its keyed hash is kept.
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
        if self.column is not None and headers.is_header(self.column) and self.column != headers.PATIENT:
            raise ValueError(f"column {self.column!r}: of a header only {headers.PATIENT} can say who is a patient")
        return self

    @property
    def in_header(self) -> bool:
        """True when the files themselves say who is a patient."""
        return self.column == headers.PATIENT


class Source(Model):
    """One data set on disk. Its files lie in `root`, below the folder of the description or below `--root`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    licence: str
    attribution: str
    url: str
    root: str = "."
    public_ids: bool = Field(default=False, description="Ids are already public: pseudonyms use a fixed, known key.")
    specialty: str
    image_type: str | None = Field(
        default=None, description="Default: what the DICOM Modality decides (CT, MR, US, ...)"
    )
    new_terms: bool = Field(default=False, description="Allow a specialty or image type outside medisyn.terms.")
    table: Table | None = None
    files: Files | None = None
    file: str = Field(default="{file}", description="Path template of the image over the columns.")
    folders: tuple[str, ...] = Field(default=(".",), description="Folders in which the file is looked for, in order.")
    split: Split
    fields: dict[str, Words] = Field(default={})
    geometry: str = "short-side-crop"
    size: int = Field(default=512, ge=8, description="Pixels of both sides of a sample.")
    samples: tuple[Take, ...] = Field(min_length=1)
    known_defects: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if (self.table is None) == (self.files is None):
            raise ValueError("give either table or files")
        for number, take in enumerate(self.samples):
            if not self.new_terms:
                _term(take.specialty or self.specialty, SPECIALTIES, "specialty")
                if (image_type := take.image_type or self.image_type) is not None:
                    _term(image_type, IMAGE_TYPES, "image_type")
            fields = take.template_fields()
            known = {*self.fields, *take.fields, *take.builtin, *filter(headers.is_header, fields)}
            for text in (*take.captions, *take.labels):
                check_fields(parse(text), known, text)
            headers.check_columns([*fields, *self._columns(take)], f"samples.{number}")
            if isinstance(take, SeriesSlices) and any(map(headers.is_header, take.where)):
                raise ValueError(f"samples.{number}.where: a series is chosen by `series`, not by its header")
        return self

    def words(self, take: Take) -> dict[str, Words]:
        return {**self.fields, **take.fields}

    def _columns(self, take: Take) -> list[str]:
        return [*take.where, *(column for name, words in self.words(take).items() for column in words.columns(name))]

    def reads_header(self, take: Take) -> bool:
        """True when `take` needs something of a DICOM header; files that are no DICOM are then errors."""
        named = any(map(headers.is_header, [*take.template_fields(), *self._columns(take)]))
        return named or (take.image_type or self.image_type) is None


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

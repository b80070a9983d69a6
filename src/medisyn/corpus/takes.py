"""What becomes a sample: the kinds of `samples` in a source description, and how columns become words."""

from __future__ import annotations

import typing
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medisyn.corpus.captions import Template, parse


class Model(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Words(Model):
    """How a column becomes words for captions and labels.

    column     default: the field's own name; `dicom.<Keyword>` reads the header of the file
    otherwise  the column that speaks where the cell of `column` is empty
    pattern    regular expression; its first group replaces the cell
    values     cell -> word; a cell that is not listed is an error of that row
    separator  splits a cell with several values ("Mass|Nodule")
    filled     the word for any cell that is not empty, 0 or false
    flags      column -> word, for tables with one column per finding
    positive   the cells of `flags` that count as present; default: all but empty, 0, -1 and false
    counts     the cell is a JSON object word -> count; `most` of them, largest count first
    """

    column: str | None = None
    otherwise: str | None = None
    pattern: str | None = None
    values: dict[str, str] | None = None
    separator: str | None = None
    filled: str | None = None
    flags: dict[str, str] = {}
    positive: tuple[str, ...] | None = None
    counts: bool = False
    most: int = Field(default=3, ge=1)

    def columns(self, name: str) -> list[str]:
        """Every column that the field `name` reads."""
        if self.flags:
            return list(self.flags)
        return [self.column or name, *filter(None, [self.otherwise])]


class Mask(Model):
    """A mask file of the same shape: values -> words, present when at least `min_pixels` of the picture have the value.

    `file` is a path template over the columns. A value of the mask that has no word is an error, unless `others` says
    that they are left out on purpose.
    """

    file: str
    values: dict[int, str]
    others: bool = False
    min_pixels: int = Field(default=1, ge=1)


class SliceTable(Model):
    """A table with one row per slice. One column finds the slice, `columns` are added to it.

    position     millimetres along the axis
    instance     InstanceNumber (kind series only)
    uid          SOPInstanceUID (kind series only); it is compared and not stored
    on           column of both tables: only rows that agree with the row of the file count
    listed_only  take the slices that the table lists; otherwise a slice without a row is an error
    """

    path: str
    position: str | None = None
    instance: str | None = None
    uid: str | None = None
    columns: tuple[str, ...] = ()
    on: str | None = None
    tolerance_mm: float = 1.0
    listed_only: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> SliceTable:
        if sum(way is not None for way in (self.position, self.instance, self.uid)) != 1:
            raise ValueError("a slice table finds its slices by one of position, instance and uid")
        return self


class SeriesChoice(Model):
    """Which series of a folder or zip of DICOM: those that meet every condition, or only the `number`-th of them."""

    modality: str | None = None
    description: str | None = Field(
        default=None, description="Regular expression, searched in SeriesDescription, which is never stored or shown."
    )
    min_slices: int = Field(default=1, ge=1, description="Leaves out scouts and stray images.")
    number: int | None = Field(default=None, ge=1, description="In the order of SeriesNumber and SeriesInstanceUID.")


class _Take(Model):
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

    builtin: typing.ClassVar[tuple[str, ...]] = ()

    def templates(self) -> list[Template]:
        return [parse(text) for text in self.captions]

    def template_fields(self) -> set[str]:
        """Every field that a caption or label names."""
        return {name for text in (*self.captions, *self.labels) for name in parse(text).fields}


class _Aligned(_Take):
    masks: tuple[Mask, ...] = ()
    channels: tuple[str, str] | None = Field(
        default=None,
        description="Path templates of two more grey files, aligned with the file: they become green and blue.",
    )

    @model_validator(mode="after")
    def _one_look(self) -> _Aligned:
        if self.channels is not None and self.windows:
            raise ValueError("channels make one colour picture, so they go with intensity and not with windows")
        return self


class Whole(_Aligned):
    """The whole picture is one sample (per window). Mask words fill {structures}."""

    kind: Literal["whole"]
    builtin = ("window", "structures")


class Slices(_Aligned):
    """Slices of a volume. `between` are fractions of its extent along the axis, in the order feet to head (axial)."""

    kind: Literal["slices"]
    series: SeriesChoice | None = Field(default=None, description="Of a folder or zip with several; one must be left.")
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    every: int = Field(default=1, ge=1)
    between: tuple[float, float] = (0.0, 1.0)
    modality: str | None = Field(default=None, description="For NIfTI and NRRD, which do not record it: CT or MR.")
    table: SliceTable | None = None
    min_content: float = Field(default=0.05, description="Share of pixels above air (CT) or the lower fifth.")
    builtin = ("window", "structures", "plane")

    @model_validator(mode="after")
    def _by_position(self) -> Slices:
        if self.table is not None and self.table.position is None:
            raise ValueError("slices of a volume are found by position; instance and uid go with the kind series")
        return self


class SliceRule(Model):
    """Which slice of a case becomes the sample.

    lesion  the slice on which the lesion mask is largest (the first of several)
    gland   the median of the slices that show the gland mask
    A case whose mask is missing or empty is quarantined.
    """

    rule: Literal["lesion", "gland"]
    masks: tuple[str, ...] = Field(
        min_length=1, description="Path templates of the mask; the first that exists counts. Any value but 0 is inside."
    )


class Modalities(_Take):
    """One slice of a case that was scanned in several ways (Medical diffusion on a budget, section 3.3.1).

    The file and `channels` may have different voxels: all are sampled on the grid of the file, brought to `spacing_mm`
    and cropped about its centre. Without `channels` the sample is grey. Masks are sampled on the same grid.
    """

    kind: Literal["modalities"]
    channels: tuple[str, str] | None = Field(
        default=None, description="Path templates of two more scans: green and blue."
    )
    slice: SliceRule
    spacing_mm: tuple[float, float, float] = Field(default=(3.0, 0.5, 0.5), description="Depth, height, width.")
    crop: tuple[int, int, int] = Field(default=(30, 300, 300), description="Voxels kept: depth, height, width.")
    modality: str | None = Field(default="MR", description="For formats that do not record it.")
    intensity: Literal["volume-range", "percentile"] = Field(  # type: ignore[assignment]
        default="volume-range",
        description="What of each whole scan becomes black and white: its lowest and highest value, as in the paper's "
        "published code, or percentiles 0.5 and 99.5.",
    )

    @model_validator(mode="after")
    def _positive(self) -> Modalities:
        if min(self.spacing_mm) <= 0 or min(self.crop) < 1:
            raise ValueError("spacing_mm must be above 0, and crop at least 1 voxel along each axis")
        if self.windows:
            raise ValueError("modalities are scaled by intensity; windows are for CT")
        return self


class SeriesSlices(_Take):
    """The images of DICOM series as they are stored, also where they form no volume.

    `between` are fractions of a series in the order of position, or of InstanceNumber where one is missing.
    """

    kind: Literal["series"]
    series: SeriesChoice = SeriesChoice()
    every: int = Field(default=1, ge=1)
    between: tuple[float, float] = (0.0, 1.0)
    table: SliceTable | None = None
    min_content: float = Field(default=0.05, description="Share of pixels above air (CT) or a tenth of the bright end.")
    builtin = ("window",)


class Boxes(_Take):
    """Crops around boxes. {class} is the word of the box's class; a class without a word is left out."""

    kind: Literal["boxes"]
    file: str = Field(description="Path template of the annotation or mask, or the column that holds the boxes.")
    format: Literal["voc", "points", "json", "cell", "mask"] = Field(
        description="cell: `label,left,top,right,bottom|...`, or `slice:label,...` for the slices of a series or "
        "volume. mask: the bounding box of each value of a mask, its classes being the values."
    )
    series: SeriesChoice | None = Field(default=None, description="For cells with slices; one series must be left.")
    classes: dict[str, str]
    side: int = Field(default=64, ge=8, description="Pixels around a point.")
    context: float = Field(
        default=0.1, ge=0, description="Margin on each side, as a share of the longer side of the box."
    )
    min_side: int = Field(default=16, ge=1, description="Boxes with a shorter side are left out.")
    inside: bool = Field(default=True, description="Leave out crops that reach beyond the picture.")
    per_file: dict[str, int] = Field(default={}, description="At most this many of a class per file.")
    cap: dict[str, int] = Field(default={}, description="At most this many of a class in the corpus.")
    builtin = ("class", "window")

    @model_validator(mode="after")
    def _mask_values(self) -> Boxes:
        wrong = [label for label in self.classes if self.format == "mask" and not label.isdecimal()]
        if wrong:
            raise ValueError(f"the classes of a mask are its values, whole numbers; got {', '.join(wrong)}")
        return self


class Clips(_Take):
    """The whole file as a clip: a video, a multi-frame DICOM or TIFF, or a volume as the sequence of its slices.

    A clip is stored at the height `size` of its source and `aspect` times that width. `between` are fractions of its
    frames; of a volume's slices in the order feet to head (axial).
    """

    kind: Literal["clip"]
    geometry: str | None = Field(default="medisyn-v1-video", description="A preset of clips.")
    aspect: float = Field(default=448 / 256, gt=0, description="Width over height of the stored frames.")
    every: int = Field(default=1, ge=1)
    between: tuple[float, float] = (0.0, 1.0)
    most_frames: int = Field(default=1024, ge=2, description="A longer clip is quarantined.")
    series: SeriesChoice | None = Field(default=None, description="Of a folder or zip with several; one must be left.")
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    modality: str | None = Field(default=None, description="For NIfTI and NRRD, which do not record it: CT or MR.")
    builtin = ("window", "plane")


class Level(Model):
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
    """An .npz or HDF5 file with stacked pictures, a sample each; {label} is the word of its label. HDF5 needs h5py."""

    kind: Literal["arrays"]
    pairs: dict[str, str] = Field(description="Array of pictures (N, H, W[, 3]) -> array of labels, one per picture.")
    labels_file: str | None = Field(default=None, description="Path template of the file with the labels, if another.")
    per_class: int | None = Field(
        default=None, ge=1, description="At most this many pictures of each label and array, the same in every run."
    )
    classes: dict[int, str]
    splits: dict[str, Literal["train", "validation", "test"]] = Field(default={}, description="The publisher's splits.")
    builtin = ("label",)


Take = Annotated[
    Whole | Slices | Modalities | SeriesSlices | Boxes | Tiles | Arrays | Clips, Field(discriminator="kind")
]


def companion_templates(take: Take) -> list[str]:
    """Path templates of the masks, channels and labels that a take reads with each file."""
    rule = take.slice.masks if isinstance(take, Modalities) else ()
    labels = [take.labels_file] if isinstance(take, Arrays) and take.labels_file is not None else []
    return [
        *labels,
        *(mask.file for mask in getattr(take, "masks", ())),
        *rule,
        *(getattr(take, "channels", None) or ()),
    ]

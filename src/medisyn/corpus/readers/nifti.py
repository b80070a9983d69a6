"""NIfTI and NRRD into volumes, and volumes into pictures as a radiologist hangs them.

Shapes here: I, J, K file axes (K slowest in the patient scan), C channels, D, H, W with D = K, H = J, W = I.
Voxels are never resampled on reading: the axes are only turned around and the affine with them.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from typing import Any

import numpy as np
from PIL import Image

from medisyn.corpus.readers.archive import Entry
from medisyn.errors import InputError, RangeError, ReadError
from medisyn.geometry import flip_lps_ras
from medisyn.intensity import guard_hu
from medisyn.types import HU, Picture, ValueRange, Volume

MAX_VOXELS = 2**31
DHW_FROM_IJK = np.eye(4)[[2, 1, 0, 3]]  # a permutation, its own inverse
# An NRRD space as its LPS direction signs; "left" and "posterior" are the positive axes of LPS.
NRRD_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


def read_nifti(entry: Entry, modality: str | None = None) -> Volume:
    """NIfTI-1 or -2, plain or gzipped: 3D is (1, D, H, W); a 4th (time, modality) or 5th (vector) axis is channels.

    With `modality` "CT" the voxels are checked to be HU, float32; otherwise they are "raw" in the file's own type,
    float32 where the header scales them. Raises ReadError for a damaged file or one without orientation (neither
    sform nor qform: left and right would be a guess), RangeError for CT that is not HU and for NaN.
    """
    with entry.open() as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if entry.format() == "nifti.gz" else raw
        try:
            array, affine = _load_nifti(stream)
        except ReadError:
            raise
        except Exception as error:  # a damaged header makes nibabel raise almost anything, and bare Exceptions too
            raise ReadError(f"the NIfTI file is damaged or cut short ({type(error).__name__})") from None
    if array.ndim < 3 or array.ndim > 5:
        raise ReadError(f"the NIfTI file has {array.ndim} axes; readable are 3, 4 and 5")
    array_CDHW = array.reshape(*array.shape[:3], -1).transpose(3, 2, 1, 0)
    return volume_of(array_CDHW, affine @ DHW_FROM_IJK, modality, "nifti")


def read_nrrd(entry: Entry, modality: str | None = None) -> Volume:
    """NRRD with its pixels in the same file: 3 space axes, and at most one more, which becomes channels.

    `modality` as in `read_nifti`. Spaces LPS, RAS and LAS are understood. Raises ReadError for a damaged file, a
    detached header, or missing `space`, `space directions` or `space origin`.
    """
    import nrrd

    with entry.open() as stream:
        try:
            head = nrrd.read_header(stream)
        except (
            nrrd.NRRDError,
            ValueError,
            KeyError,
            IndexError,
            UnicodeDecodeError,
            StopIteration,
            TypeError,
        ) as error:
            raise ReadError(f"the NRRD header is damaged ({type(error).__name__})") from None
        if "data file" in head or "datafile" in head:
            raise ReadError("the NRRD header points to another file; only NRRD files that hold their data are read")
        affine, channel_axis = _nrrd_affine(head)
        try:
            array = nrrd.read_data(head, stream)
        except (nrrd.NRRDError, ValueError, EOFError, OSError, zlib.error, MemoryError, KeyError, TypeError) as error:
            raise ReadError(f"the NRRD data is damaged or cut short ({type(error).__name__})") from None
    array = array[..., None] if channel_axis is None else np.moveaxis(array, channel_axis, -1)
    return volume_of(_native(array).transpose(3, 2, 1, 0), affine @ DHW_FROM_IJK, modality, "nrrd")


def slices(volume: Volume, plane: str = "axial", *, channel: int = 0, nearest: bool = False) -> list[Picture]:
    """One channel cut along the plane nearest to `plane`, oriented as radiologists hang it.

    axial     from the feet up; the patient's right on the image's left, anterior at the top
    coronal   from anterior to posterior; the patient's right on the image's left, head at the top
    sagittal  from right to left; anterior on the image's left, head at the top
    Pixels are made square at the finer of the two spacings, bicubic within the range of the slice, or `nearest` for
    masks. Provenance: "plane", "slice", "position_mm" (LPS coordinate of the slice's centre across the plane), and
    "oblique_degrees" between the voxel grid and the plane. Raises InputError for an unknown plane or channel.
    """
    if plane not in PLANES:
        raise InputError(f"plane {plane!r} is unknown, allowed: {', '.join(PLANES)}")
    if not 0 <= channel < volume.array_CDHW.shape[0]:
        raise InputError(f"channel {channel} does not exist; the volume has {volume.array_CDHW.shape[0]}")
    array_SPL, affine_SPL = upright(volume.array_CDHW[channel], volume.affine)
    across = PLANES[plane]
    spacing_SPL = np.linalg.norm(affine_SPL[:3, :3], axis=0)
    row_mm, column_mm = (float(spacing_SPL[axis]) for axis in range(3) if axis != across)
    centre = (np.asarray(array_SPL.shape) - 1) / 2
    pictures = []
    for index in range(array_SPL.shape[across]):
        cut_HW = np.take(array_SPL, index, axis=across)
        if plane != "axial":
            cut_HW = cut_HW[::-1]  # head at the top
        square_HW, spacing_mm = _square_pixels(cut_HW, row_mm, column_mm, nearest)
        centre[across] = index
        position_mm = float((affine_SPL @ [*centre, 1.0])[2 - across])
        provenance = {
            **volume.provenance,
            "plane": plane,
            "slice": index,
            "position_mm": round(position_mm, 3),
            "oblique_degrees": _oblique_degrees(affine_SPL, across),
        }
        pictures.append(Picture(square_HW[None], volume.value_range, (spacing_mm, spacing_mm), provenance))
    return pictures


def _load_nifti(stream: Any) -> tuple[np.ndarray, np.ndarray]:
    """The voxels (I, J, K, ...) and the affine from (i, j, k) to LPS mm."""
    import nibabel

    kind = nibabel.Nifti2Image if _header_size(stream) == 540 else nibabel.Nifti1Image
    image = kind.from_stream(stream)
    refuse_voxels(image.shape)
    _refuse_unoriented(image.header)
    return _nifti_values(image.dataobj), flip_lps_ras(np.asarray(image.affine))


def _nifti_values(dataobj: Any) -> np.ndarray:
    """Voxels in the file's type, or float32 when the header holds a slope or intercept; RGB becomes a last axis."""
    slope, intercept = float(dataobj.slope), float(dataobj.inter)
    stored = _native(np.asanyarray(dataobj.get_unscaled()))
    if stored.dtype.names is not None:
        stored = np.stack([stored[name] for name in stored.dtype.names[:3]], axis=-1)
    if (slope, intercept) == (1.0, 0.0):
        return stored.astype(np.float32) if stored.dtype == np.float64 else stored
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _native(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _header_size(stream: Any) -> int:
    """348 for NIfTI-1, 540 for NIfTI-2, in either byte order."""
    head = stream.read(4)
    stream.seek(0)
    little, big = int.from_bytes(head, "little"), int.from_bytes(head, "big")
    return little if little in (348, 540) else big


def refuse_voxels(shape: tuple[int, ...]) -> None:
    """ReadError for a header that claims no voxels, or more than fit in memory."""
    count = 1
    for length in shape:
        count *= int(length)  # Python integers: a hostile header must not overflow
    if not 0 < count <= MAX_VOXELS:
        raise ReadError(f"the header claims {count:,} voxels, allowed are 1 to {MAX_VOXELS:,}")


def _refuse_unoriented(head: Any) -> None:
    if int(head["sform_code"]) == 0 and int(head["qform_code"]) == 0:
        raise ReadError(
            "the NIfTI file has neither sform nor qform: left and right are unknown. Write the orientation into the "
            "header, or convert the original DICOM again."
        )


def _nrrd_affine(head: Any) -> tuple[np.ndarray, int | None]:
    """The affine from (i, j, k) to LPS mm, and the axis that is no space axis."""
    missing = [name for name in ("sizes", "space", "space directions", "space origin") if name not in head]
    if missing:
        raise ReadError(f"the NRRD header lacks {', '.join(missing)}: where the voxels sit in the patient is unknown")
    refuse_voxels(tuple(head["sizes"]))
    signs = NRRD_SPACES.get(str(head["space"]).lower())
    if signs is None:
        raise ReadError(f"NRRD space {str(head['space'])[:40]!r} is not understood; allowed: LPS, RAS, LAS")
    directions = np.asarray(
        [[np.nan] * 3 if row is None else row for row in head["space directions"]], dtype=np.float64
    ).reshape(-1, 3)
    space_axes = [axis for axis, row in enumerate(directions) if np.isfinite(row).all()]
    if len(space_axes) != 3 or len(directions) > 4:
        raise ReadError(
            f"the NRRD file has {len(space_axes)} space axes among {len(directions)}; readable are 3 of 3 or 4"
        )
    affine = np.eye(4)
    affine[:3, :3] = (directions[space_axes] * np.asarray(signs)).T
    affine[:3, 3] = np.asarray(head["space origin"], dtype=np.float64) * signs
    others = [axis for axis in range(len(directions)) if axis not in space_axes]
    return affine, others[0] if others else None


def volume_of(array_CDHW: np.ndarray, affine: np.ndarray, modality: str | None, kind: str) -> Volume:
    """What a file of the format `kind` holds; `modality` as in `read_nifti`. Raises ReadError and RangeError."""
    provenance = {"format": kind, **({"modality": modality} if modality else {})}
    if modality == "CT":
        array_CDHW = array_CDHW.astype(np.float32)
        guard_hu(array_CDHW)
        np.maximum(array_CDHW, HU.low, out=array_CDHW)  # scanners mark "outside the circle" with -2000 and less
        value_range = ValueRange(HU.low, max(HU.high, float(array_CDHW.max())), "hu")
    else:
        low, high = float(array_CDHW.min()), float(array_CDHW.max())
        if not np.isfinite([low, high]).all():
            raise RangeError(f"{int((~np.isfinite(array_CDHW)).sum()):,} voxels are NaN or infinite")
        value_range = ValueRange(low, max(high, low + 1), "raw")
    try:
        return Volume(array_CDHW, affine, value_range, provenance)
    except InputError as error:
        raise ReadError(f"the header places the voxels nowhere: {error}") from None


def upright(array_DHW: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels with axes turned to superior, posterior, left (a view), and their affine to LPS mm."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[2 - i, p[i]]) for i in range(3)))
    turned = array_DHW.transpose(axes)
    turned_affine = affine[:, [*axes, 3]].copy()
    for axis in range(3):
        if turned_affine[2 - axis, axis] < 0:
            turned = np.flip(turned, axis)
            turned_affine[:3, 3] += turned_affine[:3, axis] * (turned.shape[axis] - 1)
            turned_affine[:3, axis] *= -1
    return turned, turned_affine


def _oblique_degrees(affine_SPL: np.ndarray, across: int) -> float:
    """Angle between the slice normal of the voxel grid and the patient axis across the plane."""
    along = [axis for axis in range(3) if axis != across]
    normal = np.cross(affine_SPL[:3, along[0]], affine_SPL[:3, along[1]])
    cosine = abs(normal[2 - across]) / np.linalg.norm(normal)
    return round(float(np.degrees(np.arccos(min(cosine, 1.0)))), 1)


def _square_pixels(cut_HW: np.ndarray, row_mm: float, column_mm: float, nearest: bool) -> tuple[np.ndarray, float]:
    """The slice with both spacings equal to the finer one (unchanged when they differ by less than 1 %)."""
    fine = min(row_mm, column_mm)
    if max(row_mm, column_mm) < 1.01 * fine:
        return np.ascontiguousarray(cut_HW), fine
    height, width = round(cut_HW.shape[0] * row_mm / fine), round(cut_HW.shape[1] * column_mm / fine)
    if nearest:
        rows = np.minimum(((np.arange(height) + 0.5) * fine / row_mm).astype(int), cut_HW.shape[0] - 1)
        columns = np.minimum(((np.arange(width) + 0.5) * fine / column_mm).astype(int), cut_HW.shape[1] - 1)
        return cut_HW[rows][:, columns], fine
    image = Image.fromarray(np.ascontiguousarray(cut_HW, dtype=np.float32))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    resized = np.clip(resized, cut_HW.min(), cut_HW.max())  # bicubic overshoots at edges
    return (np.rint(resized) if cut_HW.dtype.kind in "iu" else resized).astype(cut_HW.dtype), fine

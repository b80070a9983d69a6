"""Stored DICOM values into what they mean: HU for CT, upright grey for MONOCHROME1, RGB for every colour model.

Shapes here: F frames, H, W height and width, C channels.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from medisyn.errors import MissingDependency, RangeError, ReadError
from medisyn.types import HU, UINT8, ValueRange

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_VALUES = 2**31  # pixels times frames times channels of one file
GREY = ("MONOCHROME1", "MONOCHROME2")
INSTALL_JPEG12 = "pip install -c constraints.txt 'medisyn[jpeg12]'"
JPEG_12_BIT = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")


def header(dataset: Dataset, keyword: str) -> Any:
    """The value of a tag, None when it is absent or empty. Raises ReadError when it cannot be parsed."""
    from pydicom.config import disable_value_validation

    try:
        # pydicom warns of odd values, to warnings and to its log, and quotes them: they may be a patient's name
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            value = dataset.get(keyword)
    except Exception as error:  # pydicom parses a tag when it is read, and a damaged one raises almost anything
        raise ReadError(f"the DICOM tag {keyword} is damaged ({type(error).__name__})") from None
    return None if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0) else value


def number(dataset: Dataset, keyword: str) -> float | None:
    """A tag as float, of several values the first; None when it is absent or empty."""
    values = numbers(dataset, keyword)
    return values[0] if values else None


def number_or(dataset: Dataset, keyword: str, default: float) -> float:
    value = number(dataset, keyword)
    return default if value is None else value


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """A tag as a list of floats, empty when it is absent."""
    value = header(dataset, keyword)
    values = (
        [] if value is None else list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    )
    try:
        found = [float(one) for one in values]
    except (TypeError, ValueError):
        raise ReadError(f"the DICOM tag {keyword} does not hold numbers") from None
    if not np.isfinite(found).all():
        raise ReadError(f"the DICOM tag {keyword} holds a number that is not finite")
    return found


def frame_value(dataset: Dataset, frame: int, group: str, keyword: str) -> list[float]:
    """Numbers that enhanced objects keep per frame, else shared, else in the data set itself; empty if nowhere."""
    per_frame = header(dataset, "PerFrameFunctionalGroupsSequence") or []
    shared = header(dataset, "SharedFunctionalGroupsSequence") or []
    for holder in ([per_frame[frame]] if frame < len(per_frame) else []) + list(shared[:1]):
        inner = header(holder, group)
        if inner is not None and header(inner[0], keyword) is not None:
            return numbers(inner[0], keyword)
    return numbers(dataset, keyword)


def pixels(dataset: Dataset) -> tuple[np.ndarray, ValueRange]:
    """All frames as (F, C, H, W) and their range.

    CT with a rescale is float32 HU, clipped below at -1024 (air; padding becomes -1024) and unbounded above. Colour
    is uint8 RGB. Other grey is uint8 where 8 bits are stored, else "raw" in its own type, float32 after a rescale.
    Padding of other modalities becomes their lowest value. Raises ReadError, MissingDependency.
    """
    photometric = str(header(dataset, "PhotometricInterpretation") or "")
    stored_FHWC = _stored(dataset)
    if stored_FHWC.shape[-1] == 3:
        return _eight_bit(dataset, stored_FHWC).transpose(0, 3, 1, 2), UINT8
    if photometric == "PALETTE COLOR":
        return _palette(dataset, stored_FHWC[..., 0]).transpose(0, 3, 1, 2), UINT8
    if photometric not in GREY:
        raise ReadError(f"photometric interpretation {photometric or 'missing'!r} with one sample per pixel is unknown")
    values_FHW, value_range = _grey(dataset, stored_FHWC[..., 0], photometric == "MONOCHROME1")
    return values_FHW[:, None], value_range


def _stored(dataset: Dataset) -> np.ndarray:
    """The decoded values as (F, H, W, samples); YBR is already RGB."""
    from pydicom.pixels import pixel_array

    rows, columns = number_or(dataset, "Rows", 0), number_or(dataset, "Columns", 0)
    samples, frames = number_or(dataset, "SamplesPerPixel", 1), number_or(dataset, "NumberOfFrames", 1)
    if min(rows, columns, samples, frames) < 1:
        raise ReadError(f"the image has no pixels: {rows:g} rows, {columns:g} columns, {frames:g} frames")
    if rows * columns * samples * frames > MAX_VALUES:
        raise ReadError(f"the image claims {rows * columns * samples * frames:,.0f} values, allowed are {MAX_VALUES:,}")
    _require_codec(dataset)
    _refuse_short_pixel_data(dataset, int(rows * columns * samples * frames))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = pixel_array(dataset, decoding_plugin=_plugin(dataset))
    except Exception as error:  # codecs raise almost anything for damaged data, and may quote the header
        _require_twelve_bit_codec(dataset)
        raise ReadError(f"the pixel data is damaged or cut short ({type(error).__name__} while decoding)") from None
    if array.size != rows * columns * samples * frames:
        raise ReadError(
            f"the pixel data holds {array.size:,} values, its header says {rows * columns * samples * frames:,.0f}"
        )
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return native.reshape(int(frames), int(rows), int(columns), int(samples))


def _syntax(dataset: Dataset) -> Any:
    """The transfer syntax; a file without one says by its parsed encoding how it is written."""
    from pydicom import uid

    written = header(dataset.file_meta, "TransferSyntaxUID")
    if written is not None:
        return uid.UID(str(written), validation_mode=0)  # 0: no warning, which would quote the UID
    implicit, little = dataset.original_encoding
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _name_of(syntax: Any) -> str:
    """The standard's name of a transfer syntax; an unknown UID is not repeated."""
    return "unknown" if syntax.name == str(syntax) else str(syntax.name)


def _require_codec(dataset: Dataset) -> None:
    from pydicom.pixels import get_decoder

    syntax = _syntax(dataset)
    if header(dataset.file_meta, "TransferSyntaxUID") is None:
        dataset.file_meta.TransferSyntaxUID = syntax  # the decoder looks for it there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ReadError(f"transfer syntax {_name_of(syntax)!r} holds no still images that can be decoded") from None
    if not decoder.is_available:
        raise MissingDependency(f"DICOM in {syntax.name!r} needs one more codec: {INSTALL_JPEG12}")


def _plugin(dataset: Dataset) -> str:
    """RLE goes to pydicom's own decoder: the compiled one aborts the process on damaged data instead of raising."""
    from pydicom.uid import RLELossless

    return "pydicom" if _syntax(dataset) == RLELossless else ""


def _require_twelve_bit_codec(dataset: Dataset) -> None:
    """Pillow opens the 8-bit form of these syntaxes only; tell the user what the 12-bit form needs."""
    syntax = _syntax(dataset)
    if syntax in JPEG_12_BIT and importlib.util.find_spec("libjpeg") is None:
        raise MissingDependency(f"DICOM in {syntax.name!r} with 12 bits needs one more codec: {INSTALL_JPEG12}")


def _refuse_short_pixel_data(dataset: Dataset, num_values: int) -> None:
    data, bits = header(dataset, "PixelData"), number_or(dataset, "BitsAllocated", 0)
    if data is None or _syntax(dataset).is_compressed:
        return
    subsampled = str(header(dataset, "PhotometricInterpretation")) == "YBR_FULL_422"
    expected = (num_values * int(bits) + 7) // 8 * 2 // (3 if subsampled else 2)
    if len(data) < expected:
        raise ReadError(f"the pixel data is cut short: {len(data):,} bytes of {expected:,}")


def _eight_bit(dataset: Dataset, colour: np.ndarray) -> np.ndarray:
    """Colour of more than 8 stored bits as its high byte."""
    if colour.dtype == np.uint8:
        return colour
    bits = int(number_or(dataset, "BitsStored", 8))
    return np.clip(colour >> max(bits - 8, 0), 0, 255).astype(np.uint8)


def _palette(dataset: Dataset, index_FHW: np.ndarray) -> np.ndarray:
    from pydicom.pixels import apply_color_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            colour = apply_color_lut(index_FHW, dataset)[..., :3]
    except Exception as error:  # a damaged lookup table raises almost anything
        raise ReadError(f"the colour lookup table is damaged ({type(error).__name__})") from None
    return colour if colour.dtype == np.uint8 else (colour >> 8).astype(np.uint8)


def _grey(dataset: Dataset, stored_FHW: np.ndarray, inverted: bool) -> tuple[np.ndarray, ValueRange]:
    padding_FHW = _padding(dataset, stored_FHW)
    values_FHW, rescaled_ends = _rescale(dataset, stored_FHW)
    if rescaled_ends is not None and _is_hounsfield(dataset):
        if padding_FHW is not None:
            values_FHW[padding_FHW] = HU.low
        np.maximum(values_FHW, HU.low, out=values_FHW)
        return values_FHW, ValueRange(HU.low, max(HU.high, float(values_FHW.max())), "hu")

    value_range = _raw_range(dataset, stored_FHW, values_FHW, rescaled_ends)
    if inverted:
        total = value_range.low + value_range.high
        values_FHW = (total - values_FHW.astype(np.float64)).astype(values_FHW.dtype)
    if padding_FHW is not None and padding_FHW.any() and not padding_FHW.all():
        values_FHW = values_FHW.copy()
        values_FHW[padding_FHW] = values_FHW[~padding_FHW].min()
    return values_FHW, value_range


def _is_hounsfield(dataset: Dataset) -> bool:
    """CT whose rescale does not say that it leads to something else than HU."""
    return header(dataset, "Modality") == "CT" and header(dataset, "RescaleType") in (None, "HU")


def _rescale(dataset: Dataset, stored_FHW: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Modality LUT, or slope and intercept of each frame, in float32, and what the ends of the stored range become.

    Where there is neither, the stored values and None.
    """
    if header(dataset, "ModalityLUTSequence") is not None:
        values_FHW = _modality_lut(dataset, stored_FHW)
        return values_FHW, (float(values_FHW.min()), float(values_FHW.max()))
    slope_F, intercept_F = (_per_frame(dataset, name, len(stored_FHW)) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope_F is None or intercept_F is None:
        return stored_FHW, None
    if (slope_F == 0).any():
        raise ReadError("RescaleSlope is 0: every value would be the same")
    if header(dataset, "Modality") != "CT" and (slope_F == 1).all() and (intercept_F == 0).all():
        return stored_FHW, None
    values_FHW = stored_FHW.astype(np.float32) * slope_F[:, None, None] + intercept_F[:, None, None]
    ends = np.outer(_stored_ends(dataset, stored_FHW), slope_F) + intercept_F
    return values_FHW, (float(ends.min()), float(ends.max()))


def _per_frame(dataset: Dataset, keyword: str, num_frames: int) -> np.ndarray | None:
    """A rescale number of each frame as float32; None unless every frame has it."""
    found = [frame_value(dataset, f, "PixelValueTransformationSequence", keyword)[:1] for f in range(num_frames)]
    return np.concatenate(found).astype(np.float32) if all(found) else None


def _modality_lut(dataset: Dataset, stored_FHW: np.ndarray) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    try:
        return apply_modality_lut(stored_FHW, dataset).astype(np.float32)
    except Exception as error:  # a damaged lookup table raises almost anything
        raise ReadError(f"the modality lookup table is damaged ({type(error).__name__})") from None


def _padding(dataset: Dataset, stored_FHW: np.ndarray) -> np.ndarray | None:
    """Where (0028,0120), or the range up to (0028,0121), marks pixels outside the image; None when nothing does."""
    value = number(dataset, "PixelPaddingValue")
    if value is None or stored_FHW.dtype.kind not in "iu":
        return None
    limit = number_or(dataset, "PixelPaddingRangeLimit", value)
    low, high = sorted(_as_stored(one, stored_FHW.dtype) for one in (value, limit))
    return (stored_FHW >= low) & (stored_FHW <= high)


def _as_stored(value: float, dtype: np.dtype) -> int:
    """A padding value in the sign of the pixels: writers put -2000 as 63536 and the other way round."""
    info = np.iinfo(dtype)
    whole = int(value)
    if whole > info.max:
        return whole - 2**info.bits
    return whole + 2**info.bits if whole < info.min else whole


def _raw_range(
    dataset: Dataset, stored: np.ndarray, values: np.ndarray, rescaled_ends: tuple[float, float] | None
) -> ValueRange:
    """uint8 as it is; else what BitsStored admits (after the rescale), widened to what is there."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise RangeError(f"{int((~np.isfinite(values)).sum()):,} pixels are NaN or infinite")
    if stored.dtype == np.uint8 and rescaled_ends is None and number_or(dataset, "BitsStored", 8) == 8:
        return UINT8
    first, last = _stored_ends(dataset, stored) if rescaled_ends is None else rescaled_ends
    low, high = min(low, first), max(high, last)
    return ValueRange(low, high if high > low else low + 1, "raw")


def _stored_ends(dataset: Dataset, stored: np.ndarray) -> tuple[float, float]:
    """The lowest and highest number of BitsStored bits; for fractions what is there."""
    if stored.dtype.kind not in "iu":
        return float(stored.min()), float(stored.max())
    bits = int(number_or(dataset, "BitsStored", 8 * stored.dtype.itemsize))
    if stored.dtype.kind == "i":
        return -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
    return 0.0, float(2**bits - 1)

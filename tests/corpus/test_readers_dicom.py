"""One DICOM file: values by hand, colour models, frames, damage, and what may leave it."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import UID, RLELossless, SecondaryCaptureImageStorage

import build_dicom
from build_dicom import image, save
from medisyn.corpus.readers import dicom, dicom_pixels, read_item, read_series_slices
from medisyn.corpus.readers.archive import Entry
from medisyn.errors import MissingDependency, RangeError, ReadError, SeriesError
from medisyn.types import HU, UINT8, Clip, Picture, ValueRange, Volume

STORED = np.array([[0, 24, 1024], [1064, 2000, 4095]], np.uint16)


def read(tmp_path, dataset):
    return read_item(save(dataset, tmp_path / "a.dcm"))


def shipped(name):
    return get_testdata_file(name, download=False)


def test_ct_is_hounsfield_units_by_slope_and_intercept(tmp_path):
    picture = read(tmp_path, image(STORED, RescaleSlope=2, RescaleIntercept=-1024))
    assert picture.array_CHW.dtype == np.float32
    assert picture.value_range == ValueRange(-1024, 7166, "hu")
    assert picture.array_CHW.tolist() == [[[-1024, -976, 1024], [1104, 2976, 7166]]]
    assert picture.spacing_mm == (0.5, 0.25)
    assert dict(picture.provenance) == {"format": "dicom", "modality": "CT"}


def test_ct_of_pydicom_equals_its_own_rescale():
    dataset = pydicom.dcmread(shipped("CT_small.dcm"))
    picture = read_item(shipped("CT_small.dcm"))
    expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    np.testing.assert_array_equal(picture.array_CHW[0], expected)
    assert picture.value_range == HU
    assert (picture.array_CHW.min(), picture.array_CHW.max()) == (-896, 1167)


def test_values_below_air_are_air(tmp_path):
    signed = np.array([[-3024, -1000], [0, 40]], np.int16)
    assert read(tmp_path, image(signed)).array_CHW.tolist() == [[[-1024, -1000], [0, 40]]]


@pytest.mark.parametrize(("vr", "padding"), [("SS", -500), ("US", 65036)])
def test_padding_of_ct_becomes_air_also_when_its_sign_is_wrong(tmp_path, vr, padding):
    dataset = image(np.array([[-500, -1000], [0, 40]], np.int16))
    dataset.add_new("PixelPaddingValue", vr, padding)
    assert read(tmp_path, dataset).array_CHW.tolist() == [[[-1024, -1000], [0, 40]]]


def test_padding_of_unsigned_pixels_written_as_signed(tmp_path):
    dataset = image(np.array([[65036, 1000]], np.uint16), RescaleIntercept=-1024)
    dataset.add_new("PixelPaddingValue", "SS", -500)
    assert read(tmp_path, dataset).array_CHW.tolist() == [[[-1024, -24]]]


def test_a_range_of_padding_becomes_the_lowest_value_of_other_modalities(tmp_path):
    stored = np.array([[0, 3, 9], [70, 80, 90]], np.uint16)
    dataset = image(stored, Modality="MR", RescaleSlope=None, PixelPaddingValue=0, PixelPaddingRangeLimit=9)
    picture = read(tmp_path, dataset)
    assert picture.array_CHW.tolist() == [[[70, 70, 70], [70, 80, 90]]]
    assert picture.value_range == ValueRange(0, 65535, "raw")


def test_monochrome1_is_turned_round_within_the_stored_bits(tmp_path):
    stored = np.array([[0, 1000], [4000, 4095]], np.uint16)
    tags = {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    picture = read(tmp_path, image(stored, RescaleSlope=None, **tags))
    assert picture.array_CHW.tolist() == [[[4095, 3095], [95, 0]]]
    assert picture.value_range == ValueRange(0, 4095, "raw")
    padded = read(tmp_path, image(stored, RescaleSlope=None, PixelPaddingValue=0, **tags))
    assert padded.array_CHW.tolist() == [[[0, 3095], [95, 0]]]  # the white border of the film turns black


def test_eight_bits_are_grey_levels(tmp_path):
    stored = np.array([[0, 100], [200, 255]], np.uint8)
    picture = read(tmp_path, image(stored, Modality="US", RescaleSlope=None, RescaleIntercept=None))
    assert picture.value_range == UINT8
    assert picture.array_CHW.tolist() == [[[0, 100], [200, 255]]]


def test_a_rescale_of_other_modalities_gives_the_range_of_the_stored_bits(tmp_path):
    stored = np.array([[0, 10]], np.uint16)
    tags = {"Modality": "CR", "RescaleSlope": 0.5, "RescaleIntercept": 200, "BitsStored": 10, "HighBit": 9}
    picture = read(tmp_path, image(stored, **tags))
    assert picture.array_CHW.tolist() == [[[200, 205]]]
    assert picture.value_range == ValueRange(200, 711.5, "raw")


@pytest.mark.parametrize("change", [{"RescaleSlope": None, "RescaleIntercept": None}, {"RescaleType": "US"}])
def test_ct_without_a_hounsfield_rescale_does_not_claim_hu(tmp_path, change):
    assert read(tmp_path, image(STORED, **change)).value_range.unit == "raw"


def test_modality_lookup_table(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [3, 0, 16]
    table.ModalityLUTType = "US"
    table.add_new("LUTData", "US", [5, 50, 500])
    dataset = image(np.array([[0, 1, 2]], np.uint16), Modality="CR", RescaleSlope=None, RescaleIntercept=None)
    dataset.ModalityLUTSequence = [table]
    assert read(tmp_path, dataset).array_CHW.tolist() == [[[5, 50, 500]]]
    table.LUTDescriptor = [3, 0]
    with pytest.raises(ReadError, match="modality lookup table is damaged"):
        read(tmp_path, dataset)


def test_colour_models_become_the_same_rgb():
    """The same drawing stored as RGB, YBR subsampled and not, JPEG and RLE (pydicom's test files)."""
    reference = read_item(shipped("SC_rgb_dcmtk_+eb+cr.dcm")).array_CHW.astype(int)
    assert reference.shape == (3, 100, 100)
    assert reference[:, 5, 50].tolist() == [255, 0, 0]
    assert reference[:, 25, 50].tolist() == [0, 255, 0] or reference[:, 15, 50].tolist() == [255, 128, 128]
    for name in (
        "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ):
        other = read_item(shipped(name)).array_CHW.astype(int)
        assert np.median(np.abs(other - reference)) <= 2, name  # chroma rounding; edges differ by subsampling


def test_sixteen_bit_colour_keeps_its_high_byte():
    wide, narrow = read_item(shipped("SC_rgb_rle_16bit.dcm")), read_item(shipped("SC_rgb_rle.dcm"))
    assert wide.value_range == UINT8
    np.testing.assert_array_equal(wide.array_CHW, narrow.array_CHW)


def test_palette_colour_becomes_rgb():
    from pydicom.pixels import apply_color_lut

    dataset = pydicom.dcmread(shipped("examples_palette.dcm"))
    expected = apply_color_lut(dataset.pixel_array, dataset) >> 8
    picture = read_item(shipped("examples_palette.dcm"))
    np.testing.assert_array_equal(picture.array_CHW, expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_bigendian", "MR_small_implicit"],
)
def test_every_lossless_syntax_gives_the_same_mr(name):
    plain, other = read_item(shipped("MR_small.dcm")), read_item(shipped(name + ".dcm"))
    np.testing.assert_array_equal(other.array_CHW, plain.array_CHW)
    assert other.array_CHW.dtype.isnative
    assert plain.spacing_mm == (0.3125, 0.3125)


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_file_without_meta_header_is_read_by_its_encoding(tmp_path, implicit, little):
    stored = STORED if little else STORED.byteswap()
    dataset = image(STORED, PixelData=stored.tobytes(), SpecificCharacterSet="ISO_IR 100")
    del dataset.file_meta
    dataset["PixelData"].VR = "OW"
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    assert (tmp_path / "a.dcm").read_bytes()[:2] == (b"\x08\x00" if little else b"\x00\x08")
    np.testing.assert_array_equal(read_item(tmp_path / "a.dcm").array_CHW[0], STORED)


def test_detector_spacing_serves_projections(tmp_path):
    picture = read(tmp_path, image(STORED, Modality="DX", PixelSpacing=None, ImagerPixelSpacing=[0.14, 0.15]))
    assert picture.spacing_mm == (0.14, 0.15)
    assert read(tmp_path, image(STORED, PixelSpacing=[0, 0])).spacing_mm is None


def test_ultrasound_frames_are_a_clip():
    clip = read_item(shipped("examples_ybr_color.dcm"))
    assert isinstance(clip, Clip)
    assert clip.array_CTHW.shape == (3, 30, 240, 320)
    assert clip.frames_per_second == pytest.approx(1000 / 33.333)
    assert len(read_series_slices(shipped("examples_ybr_color.dcm"))) == 30


@pytest.mark.parametrize(
    ("tag", "value", "rate"),
    [
        ("CineRate", 24, 24.0),
        ("FrameTime", 40, 25.0),
        ("FrameTime", -40, None),
        ("CineRate", -1, None),
        ("KVP", 1, None),
    ],
)
def test_frame_rate_tags(tmp_path, tag, value, rate):
    frames = np.zeros((2, 2, 2), np.uint8)
    frames[1] = 9
    dataset = image(frames, Modality="US", NumberOfFrames=2, ImageOrientationPatient=None, **{tag: value})
    assert read(tmp_path, dataset).frames_per_second == rate


def test_enhanced_ct_is_a_volume_in_the_order_of_its_positions(tmp_path):
    dataset = build_dicom.enhanced([[0, 0, 4], [0, 0, 0], [0, 0, 2]], slopes=[1, 1, 2])
    volume = read(tmp_path, dataset)
    assert isinstance(volume, Volume)
    assert volume.array_CDHW[0, :, 1, 2].tolist() == [10, 40, 0]  # frame 1, frame 2 with slope 2, frame 0
    assert volume.spacing_mm == (2.0, 0.5, 0.25)
    assert (volume.affine @ [0, 0, 0, 1])[:3].tolist() == [0, 0, 0]
    with pytest.raises(SeriesError, match=r"gaps run from 1.00 to 3.00"):
        read(tmp_path, build_dicom.enhanced([[0, 0, 0], [0, 0, 1], [0, 0, 4]], slopes=[1, 1, 1]))


def test_rt_dose_planes_lie_at_their_offsets():
    volume, dataset = read_item(shipped("rtdose.dcm")), pydicom.dcmread(shipped("rtdose.dcm"))
    assert volume.array_CDHW.shape == (1, 15, 10, 10)
    step = dataset.GridFrameOffsetVector[1] - dataset.GridFrameOffsetVector[0]
    assert volume.spacing_mm[0] == pytest.approx(abs(step))
    last = volume.affine @ [14, 0, 0, 1]
    first = volume.affine @ [0, 0, 0, 1]
    assert abs(last - first)[:3] == pytest.approx([0, 0, 14 * abs(step)])
    np.testing.assert_array_equal(np.sort(volume.array_CDHW, axis=None), np.sort(dataset.pixel_array, axis=None))


def test_gzipped_dicom_and_damaged_gzip(tmp_path, monkeypatch):
    plain = save(image(STORED), tmp_path / "a.dcm").read_bytes()
    path = tmp_path / "a.dcm.gz"
    path.write_bytes(gzip.compress(plain))
    assert isinstance(read_item(path), Picture)
    monkeypatch.setattr(dicom, "MAX_MEMBER_BYTES", len(plain) - 1)
    with pytest.raises(ReadError, match="unpacks to more than"):
        read_item(path)
    path.write_bytes(gzip.compress(plain, compresslevel=0)[:-20])
    with pytest.raises(ReadError, match="gzip file is damaged or cut short"):
        read_item(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"PhotometricInterpretation": "YBR_ICT"}, "'YBR_ICT' with one sample per pixel is unknown"),
        ({"NumberOfFrames": 0}, "no pixels: 2 rows, 3 columns, 0 frames"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"PixelData": None}, "no pixel data; it is cut short"),
        ({"PixelData": b"\0" * 10}, "cut short: 10 bytes of 12"),
        ({"Rows": 60000, "Columns": 60000}, "claims 3,600,000,000 values"),
        ({"BitsAllocated": 13}, "damaged or cut short .ValueError while decoding"),
        ({"Rows": None}, "holds no image .CT Image Storage"),
        ({"Rows": None, "SOPClassUID": "1.2.3.4"}, "holds no image .of an unknown kind"),
    ],
)
def test_headers_that_make_no_image(tmp_path, change, text):
    with pytest.raises(ReadError, match=text):
        read(tmp_path, image(STORED, **change))


def test_a_damaged_colour_table_is_an_error(tmp_path):
    stored = np.array([[0, 1]], np.uint8)
    with pytest.raises(ReadError, match="colour lookup table is damaged"):
        read(tmp_path, image(stored, PhotometricInterpretation="PALETTE COLOR", RescaleSlope=None))


def test_tags_that_cannot_be_parsed(tmp_path):
    dataset = image(STORED)
    path = save(dataset, tmp_path / "a.dcm")
    content = path.read_bytes()
    slope = b"\x28\x00\x53\x10DS\x04\x001.0 "
    assert slope in content
    path.write_bytes(content.replace(slope, slope.replace(b"1.0", b"x.0")))
    with pytest.raises(ReadError, match="DICOM tag RescaleSlope does not hold numbers"):
        read_item(path)
    path.write_bytes(content.replace(slope, b"\x28\x00\x53\x10FL\x04\x00\x00\x00\x00\x40"))
    assert read_item(path).array_CHW[0, 0, 1] == 48  # 2.0 written as another kind of number


def test_a_tag_whose_parser_fails(tmp_path, monkeypatch):
    def broken(*_):
        raise NotImplementedError(build_dicom.NAME)

    monkeypatch.setattr(Dataset, "get", broken)
    with pytest.raises(ReadError, match=r"DICOM tag Rows is damaged .NotImplementedError") as caught:
        dicom_pixels.number(image(STORED), "Rows")
    assert "ROE" not in str(caught.value)


def test_numbers_that_are_text_or_not_finite():
    dataset = Dataset()
    dataset.add_new("ConvolutionKernel", "SH", "B70f")
    with pytest.raises(ReadError, match="ConvolutionKernel does not hold numbers"):
        dicom_pixels.numbers(dataset, "ConvolutionKernel")
    dataset.add_new("FrameTime", "FD", float("nan"))
    with pytest.raises(ReadError, match="FrameTime holds a number that is not finite"):
        dicom_pixels.number(dataset, "FrameTime")


def test_nan_pixels_are_an_error(tmp_path):
    dataset = image(np.zeros((1, 2), np.uint16), Modality="MR", RescaleSlope=None, BitsAllocated=32, PixelData=None)
    dataset.FloatPixelData = np.array([[np.nan, 1]], np.float32).tobytes()
    with pytest.raises(RangeError, match="1 pixels are NaN"):
        read(tmp_path, dataset)


def test_a_decoder_that_disagrees_with_the_header_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *_, **__: np.zeros((5, 5)))
    with pytest.raises(ReadError, match="holds 25 values, its header says 6"):
        read(tmp_path, image(STORED))


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_a_missing_codec_names_the_syntax_and_the_install_line(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"JPEG (Extended|Lossless).* pip install -c \S+ 'medisyn\[jpeg12\]'"):
        read_item(shipped(name))


def test_video_inside_dicom_is_refused(tmp_path):
    dataset = image(STORED)
    path = save(dataset, tmp_path / "a.dcm")
    written = b"1.2.840.10008.1.2.1\0"
    path.write_bytes(path.read_bytes().replace(written, b"1.2.840.10008.1.2.4.100"[:20], 1))
    with pytest.raises(ReadError, match=r"transfer syntax .* holds no still images"):
        read_item(path)
    mpeg = dicom.open_dataset(Entry(save(dataset, tmp_path / "b.dcm")))
    mpeg.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")
    with pytest.raises(ReadError, match="'MPEG2 Main Profile / Main Level' holds no still images"):
        dicom_pixels.pixels(mpeg)


def test_damaged_rle_raises_instead_of_ending_the_process(tmp_path):
    content = bytearray(Path(shipped("MR_small_RLE.dcm")).read_bytes())
    at = content.rindex(b"\xfe\xff\x00\xe0") + 8 + 64  # past the RLE header of the only frame
    content[at : at + 400] = b"\x7f" * 400  # "copy 128 bytes", again and again
    (tmp_path / "a.dcm").write_bytes(bytes(content))
    with pytest.raises(ReadError, match="pixel data is damaged"):
        read_item(tmp_path / "a.dcm")
    assert dicom_pixels._plugin(pydicom.dcmread(shipped("MR_small_RLE.dcm"))) == "pydicom"
    assert pydicom.dcmread(shipped("MR_small_RLE.dcm")).file_meta.TransferSyntaxUID == RLELossless


def test_text_named_dcm_and_damaged_headers(tmp_path):
    (tmp_path / "Roe.dcm").write_text("a table\nof values\n")
    with pytest.raises(ReadError, match="holds text, not an image"):
        read_item(tmp_path / "Roe.dcm")
    (tmp_path / "b.dcm").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ReadError, match="expected DICOM, but the content of the file is"):
        dicom.attributes(tmp_path / "b.dcm")
    (tmp_path / "c.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\xff\xff")
    with pytest.raises(ReadError, match=r"DICOM file (is damaged|holds no image)"):
        read_item(tmp_path / "c.dcm")


def test_a_file_that_breaks_the_parser(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise EOFError(build_dicom.NAME)

    path = save(image(STORED), tmp_path / "a.dcm")
    monkeypatch.setattr("pydicom.dcmread", broken)
    with pytest.raises(ReadError, match=r"DICOM file is damaged or cut short .EOFError") as caught:
        read_item(path)
    assert "ROE" not in str(caught.value)


def test_attributes_are_an_allow_list(tmp_path):
    dataset = image(
        STORED, PatientSex="F", PatientAge="091Y", BodyPartExamined="CHEST", SliceThickness=5, ConvolutionKernel="B70f",
        ViewPosition="PA", ContrastBolusAgent="Ultravist", StudyDescription="for Dr Who", AccessionNumber="55",
        InstitutionName="St Elsewhere", Manufacturer="janet medical",
    )  # fmt: skip
    got = dicom.attributes(save(dataset, tmp_path / "a.dcm"))
    assert got == {
        "Modality": "CT",
        "PatientSex": "F",
        "ViewPosition": "PA",
        "BodyPartExamined": "CHEST",
        "ConvolutionKernel": "B70f",
        "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 2.0,
        "Columns": 3.0,
        "SliceThickness": 5.0,
        "PatientAge": "90+",
        "AgeDecade": "90+",
        "Contrast": True,
    }  # fmt: skip - and no Manufacturer: it holds the patient's first name


@pytest.mark.parametrize(
    ("age", "years", "decade"),
    [("058Y", "58", "50-59"), ("089Y", "89", "80-89"), ("090Y", "90+", "90+"), ("104Y", "90+", "90+"),
     ("011M", "0", "0-9"), ("130M", "10", "10-19"), ("003W", "0", "0-9"), ("020D", "0", "0-9"),
     ("", None, None), ("58", None, None), ("old", None, None)],
)  # fmt: skip
def test_ages_are_in_years_and_pooled_above_89(age, years, decade):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of an age that is none
        found = dicom.attributes_of(image(STORED, PatientAge=age))
    assert (found.get("PatientAge"), found.get("AgeDecade")) == (years, decade)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_no_text_that_names_somebody_or_the_institution_passes():
    tags = {"AccessionNumber": "AC-4711", "InstitutionName": "St Elsewhere", "ReferringPhysicianName": "Kildare^James"}
    for text in ("AC-4711", "kildare", "St Elsewhere 3", build_dicom.PATIENT, build_dicom.BIRTH, "20200102", "a" * 33):
        assert "BodyPartExamined" not in dicom.attributes_of(image(STORED, BodyPartExamined=text, **tags)), text
    assert dicom.attributes_of(image(STORED, BodyPartExamined="CHEST", **tags))["BodyPartExamined"] == "CHEST"


def test_the_raw_patient_id_is_only_for_hashing(tmp_path):
    path = save(image(STORED), tmp_path / "a.dcm")
    assert dicom.patient_id_to_hash(path) == build_dicom.PATIENT
    assert build_dicom.PATIENT not in str(dicom.attributes(path))
    with pytest.raises(ReadError, match="no PatientID; give the patient column"):
        dicom.patient_id_to_hash(save(image(STORED, PatientID=""), tmp_path / "b.dcm"))


def test_nothing_about_the_patient_is_printed(tmp_path, capfd):
    dataset = image(STORED, PatientAge="5800Y")
    dataset.PatientName = "ROE^JANET" + "X" * 80  # too long for its type: pydicom would warn and quote it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(dataset, tmp_path / "a.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_item(path)
        dicom.attributes(path)
    assert "ROE" not in "".join(capfd.readouterr())


def test_secondary_captures_of_a_ct_are_colour(tmp_path):
    colour = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "Rows": 2, "Columns": 2}
    dataset = image(colour, SOPClassUID=SecondaryCaptureImageStorage, RescaleSlope=None, **tags)
    picture = read(tmp_path, dataset)
    np.testing.assert_array_equal(picture.array_CHW, colour.transpose(2, 0, 1))
    assert picture.value_range == UINT8


def test_the_ultrasound_of_the_shared_data(shared_data):
    clip = read_item(shared_data / "open" / "dicom_us_clip" / "examples_ybr_color.dcm")
    assert isinstance(clip, Clip)
    assert clip.array_CTHW.max() > 200

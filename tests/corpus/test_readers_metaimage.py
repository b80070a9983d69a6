"""MetaImage volumes: voxels, places, and files that are refused."""

import numpy as np
import pytest

import build_metaimage
from medisyn.corpus.annotations import read_mask
from medisyn.corpus.readers import read_item, read_series_slices
from medisyn.errors import RangeError, ReadError

COUNTING = np.arange(24, dtype=np.int16).reshape(4, 3, 2)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "f4"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
def test_voxels_of_every_type_keep_their_values(tmp_path, dtype, compressed, big_endian):
    array_KJI = COUNTING.astype(dtype)
    path = build_metaimage.save(tmp_path / "a.mha", array_KJI, compressed=compressed, big_endian=big_endian)
    volume = read_item(path)
    np.testing.assert_array_equal(volume.array_CDHW, array_KJI[None])
    assert volume.array_CDHW.dtype == np.dtype(dtype)
    assert volume.value_range.unit == "raw"


def test_doubles_become_float32(tmp_path):
    volume = read_item(build_metaimage.save(tmp_path / "a.mha", COUNTING / 7))
    np.testing.assert_array_equal(volume.array_CDHW[0], (COUNTING / 7).astype(np.float32))


def test_a_hand_written_header_places_its_voxels(tmp_path):
    """Axis i runs to the patient's back in steps of 2 mm, j to the right in 3 mm, k to the head in 4 mm."""
    head = (
        b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        b"TransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 10 20 30\nElementSpacing = 2 3 4\nDimSize = 2 3 4\n"
        b"ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(head + COUNTING.astype("<i2").tobytes())
    volume = read_item(tmp_path / "a.mha")
    assert volume.array_CDHW[0, 3, 1, 1] == 3 * 6 + 1 * 2 + 1
    np.testing.assert_allclose(volume.affine @ [3, 1, 1, 1], [10 - 3, 20 + 2, 30 + 12, 1])  # (k, j, i) = (3, 1, 1)


def test_keys_that_say_nothing_of_the_voxels_are_passed_over(tmp_path):
    path = build_metaimage.save(
        tmp_path / "a.mha", COUNTING, **{"ITK_InputFilterName": "x", "free text\nand more": "="}
    )
    np.testing.assert_array_equal(read_item(path).array_CDHW[0], COUNTING)


def test_older_names_of_the_same_keys(tmp_path):
    new = read_item(build_metaimage.save(tmp_path / "new.mha", COUNTING, np.diag([2.0, 3, 4, 1])))
    content = (tmp_path / "new.mha").read_bytes()
    for name, older in (
        (b"TransformMatrix", b"Rotation"),
        (b"Offset", b"Position"),
        (b"BinaryDataByte", b"ElementByte"),
    ):
        assert name in content
        content = content.replace(name, older)
    (tmp_path / "old.mha").write_bytes(content)
    old = read_item(tmp_path / "old.mha")
    np.testing.assert_array_equal(old.array_CDHW, new.array_CDHW)
    np.testing.assert_array_equal(old.affine, new.affine)


def test_a_metaimage_is_a_mask_a_ct_and_a_stack_of_slices(tmp_path):
    path = build_metaimage.save(tmp_path / "a.mha", COUNTING)
    assert read_mask(path).array_CDHW.max() == 23
    assert [picture.provenance["slice"] for picture in read_series_slices(path)] == [0, 1, 2, 3]
    with pytest.raises(RangeError, match="not HU"):
        read_item(path, modality="CT")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ElementDataFile": "a.raw"}, r"points to another file; only \.mha files that hold their data"),
        ({"BinaryData": False}, "holds text or several numbers per voxel"),
        ({"ElementNumberOfChannels": 3}, "holds text or several numbers per voxel"),
        ({"ElementType": "MET_OTHER"}, "ElementType is not readable; readable are MET_CHAR"),
        ({"DimSize": "2 3"}, "has 2 axes; readable are 3"),
        ({"DimSize": "2 3 x"}, "damaged: DimSize must hold numbers"),
        ({"DimSize": "2 3 0"}, "claims 0 voxels"),
        ({"DimSize": "2 3 5"}, "holds 48 bytes, its header asks for 60"),
        ({"DimSize": "2 3 3"}, "holds 48 bytes, its header asks for 36"),
        ({"Offset": None}, "lacks Offset: where the voxels sit in the patient is unknown"),
        ({"ElementSpacing": None, "TransformMatrix": None}, "lacks ElementSpacing, TransformMatrix"),
        ({"TransformMatrix": "1 0 0 1"}, "places three axes by another count of numbers"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "places the voxels nowhere"),
        ({"CompressedData": True}, "cannot be unpacked"),
    ],
)
def test_files_that_are_refused(tmp_path, changes, message):
    path = build_metaimage.save(tmp_path / "a.mha", COUNTING, **changes)
    with pytest.raises(ReadError, match=message):
        read_item(path)


def test_a_header_without_end_and_a_stream_that_unpacks_to_too_much(tmp_path):
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\n" * 3000)
    with pytest.raises(ReadError, match="it does not end"):
        read_item(tmp_path / "a.mha")
    path = build_metaimage.save(tmp_path / "b.mha", np.zeros((64, 64, 64), np.int16), compressed=True, DimSize="2 3 4")
    with pytest.raises(ReadError, match="holds 49 bytes, its header asks for 48"):
        read_item(path)

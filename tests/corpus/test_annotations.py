"""Boxes from every notation, labels from masks, and crops by hand."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medisyn.corpus.annotations import (
    Box,
    column_boxes,
    crops,
    json_boxes,
    mask_boxes,
    mask_labels,
    point_boxes,
    read_mask,
    slice_labels,
    table_boxes,
    voc_boxes,
)
from medisyn.corpus.readers import read_item
from medisyn.errors import InputError, ReadError
from medisyn.types import Picture, ValueRange, Volume


def voc(*objects: str) -> bytes:
    return f"<annotation><size/>{''.join(objects)}</annotation>".encode()


def voc_object(name="RBC", xmin=1, ymin=1, xmax=114, ymax=96, left_out=""):
    corners = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners.items() if tag != left_out)
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox></object>"


def test_voc_corners_are_one_based_and_inclusive():
    boxes = voc_boxes(voc(voc_object(), voc_object("WBC", 11, 21, 12, 24), voc_object("RBC", 0, 0, 5, 6)))
    assert boxes == [Box("RBC", 0, 0, 114, 96), Box("WBC", 10, 20, 12, 24), Box("RBC", 0, 0, 5, 6)]
    assert (boxes[1].width, boxes[1].height) == (2, 4)


def test_voc_without_objects_and_with_fractions():
    assert voc_boxes(voc()) == []
    assert voc_boxes(voc(voc_object(xmin="10.6", xmax="20.2"))) == [Box("RBC", 10, 0, 20, 96)]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<annotation><object>", "XML is broken at line 1 .no element found"),
        (b"", "XML is broken"),
        (voc(voc_object(left_out="ymax")), "object 1 of the VOC file lacks"),
        (voc(voc_object(), voc_object(name="  ")), "object 2 of the VOC file lacks its name"),
        (voc(voc_object(xmin="left")), "VOC corner: expected a number, got 'left'"),
        (voc(voc_object(xmin=50, xmax=49)), "class 'RBC' is empty or turned over: columns 49 to 49"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "DTDs and entities are refused"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "DTDs and entities are refused"),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a><a/>'.encode("utf-16"), "DTDs and entities are refused"),
    ],
)
def test_voc_files_that_are_refused(content, text):
    with pytest.raises(ReadError, match=text):
        voc_boxes(content)


def test_the_billion_laughs_are_not_expanded():
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 30))
    with pytest.raises(ReadError, match="DTDs and entities are refused"):
        voc_boxes(f'<!DOCTYPE a [<!ENTITY l0 "ha">{levels}]><a>&l29;</a>'.encode())


def test_points_become_boxes_around_their_centres():
    boxes = point_boxes("100 432 8\n\n53 454 2\n", 80, {"8": "schistocyte", "2": "macrocyte"})
    assert boxes == [Box("schistocyte", 60, 392, 140, 472), Box("macrocyte", 13, 414, 93, 494)]
    assert point_boxes("5 6 1", 3) == [Box("1", 4, 5, 7, 8)]  # pixels 4, 5, 6 around 5
    with pytest.raises(ReadError, match="line 2 of the point list has 2 fields"):
        point_boxes("1 2 3\n4 5\n", 8)
    with pytest.raises(ReadError, match="class '9' has no name; named are 8"):
        point_boxes("1 2 9", 8, {"8": "schistocyte"})


def test_boxes_of_slices_in_one_cell():
    got = column_boxes("12:A,143,275,207,338|13:A,125,267,216,343|12:B,1,2,3,4")
    assert got == {
        12: [Box("A", 143, 275, 207, 338), Box("B", 1, 2, 3, 4)],
        13: [Box("A", 125, 267, 216, 343)],
    }
    assert column_boxes("") == {}
    assert column_boxes("A,1,2,3,4|B,5,6,7,8") == {None: [Box("A", 1, 2, 3, 4), Box("B", 5, 6, 7, 8)]}
    with pytest.raises(ReadError, match="must read `label,left,top,right,bottom"):
        column_boxes("12:A,1,2,3")
    with pytest.raises(ReadError, match="slice number: expected a number, got 'x'"):
        column_boxes("x:A,1,2,3,4")


def test_json_and_table_boxes():
    text = '[{"label": "polyp", "left": 1, "top": 2, "right": 30, "bottom": 40}]'
    assert json_boxes(text) == [Box("polyp", 1, 2, 30, 40)]
    assert table_boxes(
        [{"label": "polyp", "left": "1", "top": "2", "right": "30", "bottom": "40", "x": ""}]
    ) == json_boxes(text)
    for wrong, message in [
        ("[{]", "not JSON .* at character 2"),
        ('{"label": "a"}', "must be a JSON list, got dict"),
        ('[{"label": "a", "left": 0, "top": 1, "right": ""}]', "box 1 lacks right, bottom"),
        ("[7]", "box 1 lacks label, left"),
        ('[{"label": "a", "left": 1e999, "top": 1, "right": 2, "bottom": 3}]', "left: expected a number, got 'inf'"),
    ]:
        with pytest.raises(ReadError, match=message):
            json_boxes(wrong)


def test_labels_of_a_mask():
    mask = np.array([[0, 1, 1], [0, 2, 0]])
    names = {2: "nerve", 1: "vessel"}
    assert mask_labels(mask, names) == ("nerve", "vessel")
    assert mask_labels(mask, names, min_pixels=2) == ("vessel",)
    assert mask_labels(np.zeros((2, 2)), names) == ()
    assert mask_labels(mask, {**names, 0: "background"}) == ("nerve", "vessel", "background")
    with pytest.raises(ReadError, match=r"values \[2\] that have no name; named are \[1\]"):
        mask_labels(mask, {1: "vessel"})


def test_boxes_of_a_mask():
    mask = np.zeros((5, 6), int)
    mask[1:3, 2:5] = 1
    mask[4, 0] = 3
    assert mask_boxes(mask, {1: "a", 2: "b", 3: "c"}) == [Box("a", 2, 1, 5, 3), Box("c", 0, 4, 1, 5)]


def test_masks_of_volumes_give_the_labels_of_each_slice():
    mask = np.zeros((1, 3, 4, 4), np.uint8)
    mask[0, 2, :2, 0] = 1
    volume = Volume(mask, np.diag([1.0, 1, 1, 1])[:, [2, 1, 0, 3]], ValueRange(0, 1, "raw"))
    assert slice_labels(volume, {1: "tumour"}) == [(), (), ("tumour",)]
    assert slice_labels(volume, {1: "tumour"}, min_pixels=3) == [(), (), ()]
    assert slice_labels(volume, {1: "tumour"}, "sagittal") == [("tumour",), (), (), ()]


def test_masks_from_files(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    Image.fromarray(indices).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), indices)
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4)), tmp_path / "a.nii")
    volume = read_mask(tmp_path / "a.nii")
    assert isinstance(volume, Volume)
    assert volume.array_CDHW.shape == (1, 4, 3, 2)
    nibabel.save(nibabel.Nifti1Image(np.full((2, 3, 4), 0.5, np.float32), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ReadError, match="holds fractions"):
        read_mask(tmp_path / "a.nii")


def test_a_mask_that_is_a_dicom_picture_is_refused():
    from pydicom.data import get_testdata_file

    with pytest.raises(ReadError, match="mask must be a picture file, NIfTI, NRRD or MetaImage, got a Picture"):
        read_mask(get_testdata_file("liver_1frame.dcm", download=False))


FIELD = Picture(np.arange(60, dtype=np.uint8).reshape(1, 6, 10), spacing_mm=(0.5, 0.5), provenance={"format": "png"})


def test_a_crop_is_a_square_around_the_box():
    (crop,) = crops(FIELD, [Box("cell", 2, 1, 6, 3)])  # 4 wide, 2 high: rows 0 to 3
    np.testing.assert_array_equal(crop.array_CHW[0], np.arange(60).reshape(6, 10)[0:4, 2:6])
    assert dict(crop.provenance) == {"format": "png", "label": "cell", "box": (2, 1, 6, 3)}
    assert crop.spacing_mm == (0.5, 0.5)
    (wider,) = crops(FIELD, [Box("cell", 4, 2, 6, 4)], context=0.5)
    np.testing.assert_array_equal(wider.array_CHW[0], np.arange(60).reshape(6, 10)[1:5, 3:7])
    (fixed,) = crops(FIELD, [Box("cell", 4, 2, 6, 4)], side=2, context=0.5)
    assert fixed.array_CHW.tolist() == [[[24, 25], [34, 35]]]


def test_crops_at_the_edge_are_clipped_and_filled():
    corner = Box("cell", -3, -3, 2, 2)  # clipped to 2 x 2
    (plain,) = crops(FIELD, [corner])
    assert plain.array_CHW.tolist() == [[[0, 1], [10, 11]]]
    (mirrored,) = crops(FIELD, [corner], side=4)
    assert mirrored.array_CHW[0].tolist() == [[11, 10, 11, 12], [1, 0, 1, 2], [11, 10, 11, 12], [21, 20, 21, 22]]
    (black,) = crops(FIELD, [corner], side=4, fill="black")
    assert black.array_CHW[0].tolist() == [[0] * 4, [0, 0, 1, 2], [0, 10, 11, 12], [0, 20, 21, 22]]
    hu = Picture(np.full((1, 3, 3), 40.0), ValueRange(-1024, 3071, "hu"))
    assert crops(hu, [Box("a", 0, 0, 1, 1)], side=3, fill="black")[0].array_CHW[0, 0].tolist() == [-1024] * 3


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 8))
def test_mirroring_equals_numpy_however_far_it_reaches(size, side, left):
    left = min(left, size - 1)
    row = np.arange(size, dtype=np.uint8)
    picture = Picture(np.tile(row, (size, 1))[None])
    (crop,) = crops(picture, [Box("a", left, left, left + 1, left + 1)], side=side)
    start = (2 * left + 1 - side) // 2
    padded = np.pad(row, (max(-start, 0), max(start + side - size, 0)), mode="reflect")
    first = max(start, 0)
    np.testing.assert_array_equal(crop.array_CHW[0, 0], padded[first : first + side])


def test_small_boxes_are_left_out_and_foreign_ones_refused():
    boxes = [Box("big", 0, 0, 4, 4), Box("thin", 0, 0, 1, 6), Box("cut", 8, 2, 14, 8)]
    assert [crop.provenance["label"] for crop in crops(FIELD, boxes, min_size=3)] == ["big"]
    assert [crop.provenance["label"] for crop in crops(FIELD, boxes, min_size=2)] == ["big", "cut"]
    with pytest.raises(InputError, match=r"columns 10 to 12, rows 0 to 2. lies outside the picture of 10 x 6"):
        crops(FIELD, [Box("far", 10, 0, 12, 2)])
    with pytest.raises(InputError, match="fill must be reflect or black, got 'white'"):
        crops(FIELD, boxes, fill="white")
    for wrong in ({"side": 0}, {"context": -0.1}):
        with pytest.raises(InputError, match="context must be 0 or more and side at least 1"):
            crops(FIELD, boxes, **wrong)


def test_cells_of_the_shared_data(shared_data):
    folder = shared_data / "open" / "micro_blood_bccd"
    picture = read_item(folder / "images" / "BloodImage_00000.jpg")
    boxes = voc_boxes((folder / "annotations" / "BloodImage_00000.xml").read_bytes())
    counts = {label: sum(box.label == label for box in boxes) for label in ("RBC", "WBC", "Platelets")}
    assert counts == {"RBC": 19, "WBC": 1, "Platelets": 0}  # as the manifest counts them
    white = next(crop for crop in crops(picture, boxes) if crop.provenance["label"] == "WBC").array_CHW.astype(int)
    red = next(crop for crop in crops(picture, boxes) if crop.provenance["label"] == "RBC").array_CHW.astype(int)
    nucleus = [(crop[2] - crop[1] > 40).mean() for crop in (white, red)]  # violet: far more blue than green
    assert nucleus[0] > 0.15 > 0.02 > nucleus[1]


def test_nerve_masks_of_the_shared_data(shared_data):
    mask = read_mask(shared_data / "open" / "us_nerve_usgra" / "masks" / "0242.png")
    assert set(np.unique(mask)) <= {0, 1, 2, 3}

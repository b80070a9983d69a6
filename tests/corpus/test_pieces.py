"""What one file becomes: slices, masks, crops, tiles, arrays."""

import nibabel
import numpy as np
import pytest
from PIL import Image

import build_dicom
import build_source
from medisyn.corpus.opened import OpenFile
from medisyn.corpus.pieces import pieces
from medisyn.errors import ConfigError, CorpusError, InputError, ReadError, SeriesError
from medisyn.intensity import percentile_clip


def taken(folder, take, row, **changes):
    """The pieces that a take makes of `row["file"]`."""
    source = build_source.source(folder, fields={}, samples=[take], **changes)
    return list(pieces(source.samples[0], OpenFile(source, folder, folder / row["file"], row, "key")))


def save_volume(path, array_XYZ, spacing=(1.0, 1.0, 2.0)):
    nibabel.save(nibabel.Nifti1Image(array_XYZ, np.diag([*spacing, 1.0])), path)


def ct(size=16, slices=20):
    """Tissue of 40 HU in a square of air, brighter from slice to slice; RAS."""
    array = np.full((size, size, slices), -1000, dtype=np.int16)
    array[4:12, 4:12] = 40 + np.arange(slices)
    return array


SLICES = {"kind": "slices", "modality": "CT", "captions": ["CT"], "windows": {"lung": "lung"}}


def test_slices_between_two_fractions_with_their_regions(tmp_path):
    save_volume(tmp_path / "a.nii.gz", ct())
    split = {"unit": "region", "regions": 5}
    made = taken(tmp_path, {**SLICES, "between": [0.25, 0.75], "every": 2}, {"file": "a.nii.gz"}, split=split)
    assert [piece.suffix for piece in made] == ["a0005", "a0007", "a0009", "a0011", "a0013"]
    assert [piece.region for piece in made] == [1, 1, 2, 2, 3]  # slabs of four slices
    assert [float(piece.picture.array_CHW.max()) for piece in made] == [45, 47, 49, 51, 53]


def test_slices_without_body_are_left_out(tmp_path):
    array = ct()
    array[:, :, 10:] = -1000
    save_volume(tmp_path / "a.nii.gz", array)
    assert len(taken(tmp_path, SLICES, {"file": "a.nii.gz"})) == 10


def test_masks_name_what_a_slice_shows(tmp_path):
    save_volume(tmp_path / "a.nii.gz", ct())
    mask = np.zeros((16, 16, 20), dtype=np.uint8)
    mask[5:8, 5:8, 3:6] = 1  # nine pixels
    mask[9:10, 9:10, 4] = 2  # one pixel
    mask[10, 10, 5] = 7
    save_volume(tmp_path / "m.nii.gz", mask)
    masks = [{"file": "{mask}", "values": {1: "liver", 2: "spleen"}, "others": True}]
    row = {"file": "a.nii.gz", "mask": "m.nii.gz"}
    words = [piece.words["structures"] for piece in taken(tmp_path, {**SLICES, "masks": masks}, row)]
    assert words[2:7] == ["", "liver", "liver and spleen", "liver", ""]
    masks[0]["min_pixels"] = 4
    assert taken(tmp_path, {**SLICES, "masks": masks}, row)[4].words["structures"] == "liver"
    del masks[0]["others"]
    with pytest.raises(ReadError, match=r"the values \[7\] that have no name"):
        taken(tmp_path, {**SLICES, "masks": masks}, row)
    save_volume(tmp_path / "m.nii.gz", mask[:, :, :5])
    with pytest.raises(ReadError, match="a mask has another shape than its volume"):
        taken(tmp_path, {**SLICES, "masks": masks}, row)


def test_a_slice_table_finds_its_slice_by_position(tmp_path):
    save_volume(tmp_path / "a.nii.gz", ct(slices=4))  # 0, 2, 4, 6 mm
    rows = [{"z": z, "tumour": word} for z, word in (("6.0", ""), ("4.1", "A"), ("2", ""), ("0", "B"), ("", "C"))]
    build_source.write_table(tmp_path / "slices.csv", rows)
    take = {**SLICES, "table": {"path": "slices.csv", "position": "z", "columns": ["tumour"]}}
    made = taken(tmp_path, take, {"file": "a.nii.gz"})
    assert [piece.columns["tumour"] for piece in made] == ["B", "", "A", ""]
    take["table"]["tolerance_mm"] = 0.05
    with pytest.raises(ReadError, match=r"no row within 0.05 mm of a slice"):
        taken(tmp_path, take, {"file": "a.nii.gz"})
    take["table"] = {"path": "slices.csv", "position": "zz", "columns": ["tumour"]}
    with pytest.raises(CorpusError, match=r"slice table: column 'zz' is not in the table.* Did you mean 'z'"):
        taken(tmp_path, take, {"file": "a.nii.gz"})
    take["table"]["position"] = "z"
    for cell, text in (("top", "must hold millimetres"), ("", "is empty in every row")):
        build_source.write_table(tmp_path / "slices.csv", [{"z": cell, "tumour": ""}])
        with pytest.raises(ReadError, match=f"slice table: column 'z' {text}"):
            taken(tmp_path, take, {"file": "a.nii.gz"})


def test_a_picture_is_no_volume_and_the_reverse(tmp_path):
    Image.fromarray(build_source.picture(1)).save(tmp_path / "a.png")
    with pytest.raises(SeriesError, match="expected a volume, the file holds a Picture; use the kind whole"):
        taken(tmp_path, SLICES, {"file": "a.png"})
    save_volume(tmp_path / "a.nii.gz", ct())
    with pytest.raises(ReadError, match="expected one picture, the file holds a Volume; use the kind slices"):
        taken(tmp_path, {"kind": "whole", "captions": ["a"]}, {"file": "a.nii.gz"})


def test_a_picture_mask_must_fit(tmp_path):
    Image.fromarray(build_source.picture(1)).save(tmp_path / "a.png")
    mask = np.zeros((24, 24), dtype=np.uint8)
    mask[:5, :5] = 2
    Image.fromarray(mask).save(tmp_path / "m.png")
    take = {"kind": "whole", "captions": ["a"], "masks": [{"file": "{mask}", "values": {1: "nerve", 2: "vessel"}}]}
    row = {"file": "a.png", "mask": "m.png"}
    assert taken(tmp_path, take, row)[0].words["structures"] == "vessel"
    Image.fromarray(mask[:20]).save(tmp_path / "m.png")
    with pytest.raises(ReadError, match=r"the mask is \(20, 24\), its picture \(24, 24\) pixels"):
        taken(tmp_path, take, row)
    save_volume(tmp_path / "m.nii.gz", ct())
    with pytest.raises(ReadError, match="the mask of a picture is a volume"):
        taken(tmp_path, take, {**row, "mask": "m.nii.gz"})


POINTS = {"kind": "boxes", "file": "{cells}", "format": "points", "side": 8, "min_side": 4, "captions": ["{class}"]}


def test_points_become_crops_and_the_edge_is_left_out(tmp_path):
    array = np.zeros((40, 60), dtype=np.uint8)
    array[18:22, 28:32] = 200  # a cell around column 30, row 20
    Image.fromarray(array).save(tmp_path / "a.png")
    (tmp_path / "cells.txt").write_text("30 20 0\n2 2 0\n40 30 1\n10 10 5\n")
    row = {"file": "a.png", "cells": "cells.txt"}
    made = taken(tmp_path, {**POINTS, "classes": {"0": "normal", "1": "burr"}}, row)
    assert {(piece.suffix, piece.words["class"]) for piece in made} == {("b0000", "normal"), ("b0002", "burr")}
    normal = next(piece for piece in made if piece.words["class"] == "normal")
    assert normal.picture.array_CHW.shape == (1, 8, 8)
    np.testing.assert_array_equal(normal.picture.array_CHW[0, 2:6, 2:6], 200)
    kept = taken(tmp_path, {**POINTS, "inside": False, "classes": {"0": "normal"}}, row)
    assert len(kept) == 2  # the corner cell too, mirrored at the edge
    with pytest.raises(ReadError, match="the annotation file of the picture is missing"):
        taken(tmp_path, {**POINTS, "classes": {"0": "x"}}, {**row, "cells": "none.txt"})


def test_at_most_so_many_of_a_class_per_file(tmp_path):
    Image.fromarray(build_source.picture(1, 100)).save(tmp_path / "a.png")
    (tmp_path / "c.txt").write_text("".join(f"{10 + 8 * n} 50 {n % 2}\n" for n in range(10)))
    take = {**POINTS, "classes": {"0": "even", "1": "odd"}, "per_file": {"0": 2}}
    words = [piece.words["class"] for piece in taken(tmp_path, take, {"file": "a.png", "cells": "c.txt"})]
    assert sorted(words) == ["even"] * 2 + ["odd"] * 5


def test_boxes_from_json_in_the_table(tmp_path):
    Image.fromarray(build_source.picture(1, 60)).save(tmp_path / "a.png")
    cell = '[{"label": "A", "left": 20, "top": 20, "right": 30, "bottom": 40}]'
    take = {**POINTS, "format": "json", "classes": {"A": "cell"}, "context": 0.1}
    made = taken(tmp_path, take, {"file": "a.png", "cells": cell})
    assert made[0].picture.array_CHW.shape == (1, 24, 24)  # the longer side of 20 and a tenth on each side


def test_tiles_stay_in_their_block_and_overlap_little(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    take = {"kind": "tiles", "mpp": "mpp", "levels": [{"name": "40x", "mpp": 0.25}], "captions": ["{magnification}"]}
    split = {"unit": "region", "regions": 3}
    made = taken(tmp_path, take, {"file": "a.png", "mpp": "0.25"}, split=split, size=16)
    corners = [tuple(int(part) for part in piece.suffix.split("-")[1:]) for piece in made]
    assert len(corners) == 9  # a block of 30 pixels holds one tile of 16 with a stride of 15
    for (x, y), piece in zip(corners, made, strict=True):
        assert piece.region == (y // 30) * 3 + x // 30 == ((y + 15) // 30) * 3 + (x + 15) // 30
    assert made[0].picture.spacing_mm == (0.00025, 0.00025)
    coarse = taken(tmp_path, take, {"file": "a.png", "mpp": "0.5"}, split=split, size=16)
    assert coarse == []  # 8 pixels would have to be enlarged to 16


def test_background_tiles_are_left_out(tmp_path):
    array = np.full((64, 64, 3), 240, dtype=np.uint8)
    array[:, :32] = (150, 60, 140)  # stained on the left
    Image.fromarray(array).save(tmp_path / "a.png")
    take = {"kind": "tiles", "mpp": "mpp", "levels": [{"name": "40x", "mpp": 1}], "overlap": 0, "captions": ["x"]}
    split = {"unit": "region", "regions": 4}
    made = taken(tmp_path, take, {"file": "a.png", "mpp": "1"}, split=split, size=16)
    assert {piece.region % 4 for piece in made} == {0, 1}
    with pytest.raises(ReadError, match="column 'mpp': expected micrometres per pixel above 0"):
        taken(tmp_path, take, {"file": "a.png", "mpp": "?"})


ARRAYS = {"kind": "arrays", "pairs": {"x": "y"}, "classes": {0: "normal", 1: "ill"}, "captions": ["{label}"]}


def test_stacked_arrays(tmp_path):
    pictures = np.stack([build_source.picture(n) for n in range(3)])
    np.savez(tmp_path / "a.npz", x=pictures, y=np.array([[0], [1], [1]], dtype=np.uint8))
    made = taken(tmp_path, {**ARRAYS, "splits": {"x": "test"}}, {"file": "a.npz"})
    assert [piece.words["label"] for piece in made] == ["normal", "ill", "ill"]
    assert [piece.suffix for piece in made] == ["x-000000", "x-000001", "x-000002"]
    assert {piece.given for piece in made} == {"test"}
    np.testing.assert_array_equal(made[2].picture.array_CHW[0], pictures[2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 4, 4)), "y": np.zeros(3, int)}, "'x' is float64, expected uint8"),
        ({"x": np.zeros((3, 4, 4), np.uint8), "y": np.zeros(2, np.uint8)}, "has 3 pictures, 'y' 2 labels"),
        ({"x": np.ones((1, 4, 4), np.uint8), "y": np.full(1, 9, np.uint8)}, r"label 9 has no word; named: \[0, 1\]"),
        ({"x": np.zeros((3, 4, 4), np.uint8)}, "no array 'y'; it holds x"),
        ({"x": np.zeros((3, 4), np.uint8), "y": np.zeros(3, np.uint8)}, r"'x' is \(3, 4\), expected \(N, H, W\)"),
        ({"x": np.zeros((1, 4, 4, 5), np.uint8), "y": np.zeros(1, np.uint8)}, r"'x' is \(1, 4, 4, 5\), expected"),
        ({"x": np.array([None]), "y": np.zeros(1, np.uint8)}, "array 'x' is damaged or no plain array"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ReadError, match=message):
        taken(tmp_path, ARRAYS, {"file": "a.npz"})


def test_files_that_are_no_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"text")
    with pytest.raises(ReadError, match=r"not an .npz file of plain arrays"):
        taken(tmp_path, ARRAYS, {"file": "a.npz"})
    with pytest.raises(ReadError, match="the file is missing"):
        taken(tmp_path, ARRAYS, {"file": "b.npz"})
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 9, 9), np.uint8), y=np.zeros(9, np.uint8))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ReadError, match=r"not an .npz file of plain arrays \(BadZipFile\)"):
        taken(tmp_path, ARRAYS, {"file": "a.npz"})
    with (tmp_path / "a.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(ReadError, match=r"a single \.npy array"):
        taken(tmp_path, ARRAYS, {"file": "a.npz"})


# ---- boxes from masks and from cells, and aligned channels


def test_boxes_around_the_values_of_a_mask(tmp_path):
    array = build_source.picture(1, 60)
    Image.fromarray(array).save(tmp_path / "a.png")
    mask = np.zeros((60, 60), dtype=np.uint8)
    mask[20:30, 24:44] = 3
    mask[40:50, 10:20] = 4
    Image.fromarray(mask).save(tmp_path / "m.png")
    take = {"kind": "boxes", "format": "mask", "file": "{mask}", "context": 0, "min_side": 4, "captions": ["{class}"]}
    row = {"file": "a.png", "mask": "m.png"}
    made = taken(tmp_path, {**take, "classes": {"3": "nerve"}}, row)
    assert [(piece.suffix, piece.words["class"]) for piece in made] == [("b0000", "nerve")]
    np.testing.assert_array_equal(made[0].picture.array_CHW[0], array[15:35, 24:44])  # 20 pixels square around it
    Image.fromarray(mask[:50]).save(tmp_path / "m.png")
    with pytest.raises(ReadError, match=r"the mask is \(50, 60\), its picture \(60, 60\) pixels"):
        taken(tmp_path, {**take, "classes": {"3": "nerve"}}, row)
    with pytest.raises(ConfigError, match="the classes of a mask are its values, whole numbers; got nerve"):
        taken(tmp_path, {**take, "classes": {"nerve": "nerve"}}, row)


CELL = {"kind": "boxes", "format": "cell", "file": "{boxes}", "context": 0, "min_side": 2, "captions": ["{class}"]}


def test_boxes_of_a_picture_in_one_cell(tmp_path):
    array = build_source.picture(2, 40)
    Image.fromarray(array).save(tmp_path / "a.png")
    row = {"file": "a.png", "boxes": "A,10,12,20,22|B,1,1,5,5|C,0,0,9,9"}
    made = taken(tmp_path, {**CELL, "classes": {"A": "polyp", "B": "ulcer"}}, row)
    assert {piece.words["class"] for piece in made} == {"polyp", "ulcer"}
    polyp = next(piece for piece in made if piece.words["class"] == "polyp")
    np.testing.assert_array_equal(polyp.picture.array_CHW[0], array[12:22, 10:20])
    assert taken(tmp_path, {**CELL, "classes": {"A": "polyp"}}, {**row, "boxes": ""}) == []


def test_boxes_of_the_slices_of_a_volume_in_one_cell(tmp_path):
    save_volume(tmp_path / "a.nii.gz", ct())
    row = {"file": "a.nii.gz", "boxes": "7:A,2,2,8,8|12:A,4,4,8,8"}
    take = {**CELL, "classes": {"A": "tumour"}}
    made = taken(tmp_path, take, row, split={"unit": "region", "regions": 5})
    assert [(piece.suffix, piece.region) for piece in made] == [("s0007-b0000", 1), ("s0012-b0000", 3)]
    assert made[1].picture.array_CHW.max() == 52  # 40 HU and 1 for each slice
    with pytest.raises(ReadError, match="a box cell names slice 20; the file has the slices 0 to 19"):
        taken(tmp_path, take, {**row, "boxes": "20:A,2,2,8,8"})
    with pytest.raises(ReadError, match="a box cell names slice none"):
        taken(tmp_path, take, {**row, "boxes": "1:A,2,2,8,8|A,2,2,8,8"})


def test_boxes_of_the_slices_of_a_chosen_series(tmp_path):
    build_dicom.series(tmp_path / "study", [[0, 0, 5 * n] for n in range(3)], SeriesNumber=1)
    build_dicom.save(build_dicom.image(build_dicom.slice_pixels(9), SeriesInstanceUID="9", SeriesNumber=9),
                     tmp_path / "study" / "scout.dcm")  # fmt: skip
    take = {**CELL, "classes": {"A": "tumour"}, "min_side": 1}
    row = {"file": "study", "boxes": "2:A,2,1,4,3"}
    (piece,) = taken(tmp_path, {**take, "series": {"min_slices": 2}}, row)
    assert piece.picture.array_CHW[0].tolist() == [[20, 20], [20, 20]]  # the tissue of the third slice
    with pytest.raises(SeriesError, match=r"2 series meet the conditions of `series` .*, and one is needed here"):
        taken(tmp_path, {**take, "series": {}}, row)
    with pytest.raises(SeriesError, match=r"2 series lie here .*description `series: \{number: 1\}`"):
        taken(tmp_path, take, row)


def test_three_aligned_pictures_become_one_in_colour(tmp_path):
    for number, name in enumerate("abc"):
        Image.fromarray(build_source.picture(number)).save(tmp_path / f"{name}.png")
    take = {"kind": "whole", "captions": ["x"], "channels": ["{adc}", "{dwi}"]}
    row = {"file": "a.png", "adc": "b.png", "dwi": "c.png"}
    (piece,) = taken(tmp_path, take, row)
    expected = np.stack([build_source.picture(number) for number in range(3)])
    np.testing.assert_array_equal(piece.picture.array_CHW, expected)
    Image.fromarray(build_source.picture(2, 30)).save(tmp_path / "c.png")
    with pytest.raises(InputError, match="RGB needs three grey pictures of one shape"):
        taken(tmp_path, take, row)
    with pytest.raises(ConfigError, match="channels make one colour picture, so they go with intensity"):
        taken(tmp_path, {**take, "windows": {"lung": "lung"}}, row)


def test_three_aligned_volumes_become_slices_in_colour(tmp_path):
    rng = np.random.default_rng(0)
    volumes = {name: rng.integers(0, 900, (16, 16, 4)).astype(np.int16) for name in "abc"}
    for name, array in volumes.items():
        save_volume(tmp_path / f"{name}.nii.gz", array)
    take = {"kind": "slices", "modality": "MR", "intensity": "percentile", "captions": ["x"]}
    take["channels"] = ["{adc}", "{dwi}"]
    row = {"file": "a.nii.gz", "adc": "b.nii.gz", "dwi": "c.nii.gz"}
    made = taken(tmp_path, take, row)
    assert [piece.picture.array_CHW.shape for piece in made] == [(3, 16, 16)] * 4
    grey = [taken(tmp_path, {**take, "channels": None}, {**row, "file": f"{name}.nii.gz"})[2] for name in "abc"]
    expected = np.stack([percentile_clip(one.picture.array_CHW[0]) for one in grey])
    np.testing.assert_array_equal(made[2].picture.array_CHW, expected)
    save_volume(tmp_path / "c.nii.gz", volumes["c"], spacing=(1.0, 1.0, 3.0))
    with pytest.raises(ReadError, match=r"channels are not aligned: \(4, 16, 16\) and .* voxels, at different places"):
        taken(tmp_path, take, row)
    save_volume(tmp_path / "c.nii.gz", volumes["c"][:, :, :3])
    with pytest.raises(ReadError, match=r"channels are not aligned: \(4, 16, 16\) and \(3, 16, 16\) voxels\. Resample"):
        taken(tmp_path, take, row)
    Image.fromarray(build_source.picture(1)).save(tmp_path / "p.png")
    with pytest.raises(SeriesError, match="expected a volume, the file of a channel holds a Picture"):
        taken(tmp_path, take, {**row, "dwi": "p.png"})

"""One slice of several scans as one picture: which slice, which grey levels, and cases that are refused."""

import nibabel
import numpy as np
import pytest
from PIL import Image

import build_metaimage
import build_source
from medisyn.corpus.opened import OpenFile
from medisyn.corpus.pieces import pieces
from medisyn.errors import ConfigError, InputError, RangeError, ReadError, SeriesError

ROW = {"file": "t2w.mha"}
T2W = np.diag([0.5, 0.5, 3.0, 1])  # (i, j, k) to LPS mm
TAKE = {
    "kind": "modalities",
    "channels": ["adc.mha", "dwi.mha"],
    "slice": {"rule": "lesion", "masks": ["lesion.mha"]},
    "crop": [6, 8, 8],
    "captions": ["x"],
}
GLAND = {**TAKE, "slice": {"rule": "gland", "masks": ["lesion.mha"]}}


def made(folder, take=TAKE, row=ROW, **changes):
    source = build_source.source(folder, fields={}, samples=[take], **changes)
    (piece,) = pieces(source.samples[0], OpenFile(source, folder, folder / row["file"], row, "key"))
    return piece


def save_mask(folder, areas, name="lesion.mha", affine=T2W, value=3):
    """A mask with `areas[k]` voxels in slice k of 16 x 16."""
    mask = np.zeros((len(areas), 16, 16), np.uint8)
    for k, area in enumerate(areas):
        inner = mask[k, 4:12, 4:12].reshape(-1)
        inner[:area] = value
        mask[k, 4:12, 4:12] = inner.reshape(8, 8)
    build_metaimage.save(folder / name, mask, affine)


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("t2w", "adc", "dwi"):
        build_metaimage.save(tmp_path / f"{name}.mha", rng.integers(0, 900, (6, 16, 16)).astype(np.int16), T2W)
    save_mask(tmp_path, [0, 3, 9, 9, 1, 0])
    return tmp_path


def grey(folder, name):
    """By hand: the lowest value of the whole scan is black, its highest white; the middle 8 x 8 voxels."""
    content = (folder / f"{name}.mha").read_bytes()
    scan = np.frombuffer(content[-6 * 16 * 16 * 2 :], "<i2").reshape(6, 16, 16).astype(float)
    return np.rint((scan - scan.min()) / (scan.max() - scan.min()) * 255)[:, 4:12, 4:12]


def test_aligned_scans_become_channels_scaled_by_their_whole_range(case):
    piece = made(case)
    expected = np.stack([grey(case, name)[2] for name in ("t2w", "adc", "dwi")])
    np.testing.assert_array_equal(piece.picture.array_CHW, expected)
    assert piece.picture.spacing_mm == (0.5, 0.5)
    assert (piece.suffix, piece.picture.provenance["slice"]) == ("d0002", 2)
    np.testing.assert_array_equal(made(case, {**TAKE, "channels": None}).picture.array_CHW, expected[:1])


@pytest.mark.parametrize(
    ("take", "areas", "number"),
    [
        (TAKE, [0, 3, 9, 9, 1, 0], 2),  # the first of two that are as large
        (TAKE, [5, 3, 1, 1, 1, 6], 5),
        (GLAND, [0, 3, 9, 9, 1, 0], 2),  # the median of 1, 2, 3, 4 is 2.5
        (GLAND, [1, 0, 0, 1, 1, 60], 3),  # of 0, 3, 4, 5 it is 3.5
        (GLAND, [0, 1, 1, 1, 1, 1], 3),
    ],
)
def test_the_slice_by_hand(case, take, areas, number):
    save_mask(case, areas)
    assert made(case, take).picture.provenance["slice"] == number


def test_a_mask_on_another_grid_chooses_the_same_place(case):
    """Its slices lie at z = -0.6, 0.9, ..., 8.4 (number 6), 9.9, 11.4 (number 8): nearest to 9 and 12 of the scan."""
    affine = np.diag([0.5, 0.5, 1.5, 1])
    affine[2, 3] = -0.6
    save_mask(case, [0] * 6 + [5, 0, 40, 0, 0, 0], affine=affine)
    assert made(case).picture.provenance["slice"] == 4
    save_mask(case, [0] * 6 + [40, 0, 5, 0, 0, 0], affine=affine)
    assert made(case).picture.provenance["slice"] == 3


def test_the_first_mask_that_exists_counts(case):
    rule = {"rule": "lesion", "masks": ["expert.mha", "lesion.mha"]}
    assert made(case, {**TAKE, "slice": rule}).picture.provenance["slice"] == 2
    save_mask(case, [0, 0, 0, 0, 7, 0], "expert.mha")
    assert made(case, {**TAKE, "slice": rule}).picture.provenance["slice"] == 4


def test_a_ramp_in_the_patient_is_equal_in_all_channels(tmp_path):
    """f = 2x + 3y - 5z in three scans: fine, coarse and turned, and stored upside down, with one range of values."""
    coarse, turned = np.diag([1.6, 1.6, 2.0, 1]), np.diag([-0.9, 1.2, -3.5, 1.0])
    coarse[:3, 3], turned[:3, 3] = (-30, -30, -26), (30, -30, 40)
    c, s = np.cos(0.2), np.sin(0.2)
    coarse[:2, :2] = np.array([[c, -s], [s, c]]) * 1.6
    fine = np.diag([0.4, 0.4, 3.0, 1])
    for name, affine, shape in (
        ("t2w", fine, (7, 40, 40)),
        ("adc", coarse, (28, 60, 60)),
        ("dwi", turned, (20, 60, 60)),
    ):
        k, j, i = np.indices(shape)
        x, y, z = (
            affine[axis, 0] * i + affine[axis, 1] * j + affine[axis, 2] * k + affine[axis, 3] for axis in range(3)
        )
        ramp = 2 * x + 3 * y - 5 * z
        far = np.hypot(np.hypot(x - 8, y - 8), z - 9) > 22  # away from the picture: one range in all scans
        ramp = np.where(far, np.clip(ramp, -150, 150), ramp)
        if name == "t2w":
            ramp[0, 0, 0], ramp[-1, -1, -1] = -150, 150
        else:
            ramp[0, 0, 0], ramp[0, 0, 1] = -150, 150
        assert (ramp.min(), ramp.max()) == (-150, 150)
        build_metaimage.save(tmp_path / f"{name}.mha", ramp, affine)
    save_mask(tmp_path, [0, 0, 0, 60, 0, 0, 0])
    red, green, blue = made(tmp_path, {**TAKE, "crop": [7, 20, 20]}).picture.array_CHW.astype(int)
    h, w = np.indices((20, 20))
    # 40 voxels of 0.4 mm are 32 of 0.5 mm with the same centre, 7.8 mm; z = 9 mm is slice 3 of both grids
    x, y = 7.8 + 0.5 * (w - 9.5), 7.8 + 0.5 * (h - 9.5)
    expected = np.rint((2 * x + 3 * y - 5 * 9 + 150) / 300 * 255).astype(int)
    for channel in (red, green, blue):
        assert np.abs(channel - expected).max() <= 1  # float32 on disk may tip a value at a half
        assert (channel != expected).mean() < 0.02


def test_what_a_scan_does_not_reach_is_black(case):
    shifted = T2W.copy()
    shifted[0, 3] = 4.0  # 8 voxels to the left of the patient: the left half of the picture lies outside
    build_metaimage.save(case / "adc.mha", (np.indices((6, 16, 16)).sum(axis=0) % 2).astype(np.int16), shifted)
    green = made(case).picture.array_CHW[1]
    assert (green[:, :4] == 0).all()
    assert set(np.unique(green[:, 4:])) == {0, 255}
    small = made(case, {**TAKE, "channels": None, "crop": [6, 20, 20]}).picture.array_CHW[0]
    assert (small[:2] == 0).all()
    assert small[2:18, 2:18].any()


def test_percentiles_keep_one_bright_voxel_from_darkening_the_rest(case):
    scan = np.tile(np.arange(256, dtype=np.int16).reshape(16, 16), (6, 1, 1))
    scan[0, 0, 0] = 30000
    build_metaimage.save(case / "t2w.mha", scan, T2W)
    take = {**TAKE, "channels": None}
    assert made(case, take).picture.array_CHW.max() <= 2
    low, high = np.percentile(scan, [0.5, 99.5])
    expected = np.rint(np.clip((scan[2, 4:12, 4:12] - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(made(case, {**take, "intensity": "percentile"}).picture.array_CHW[0], expected)
    mostly_air = np.zeros((6, 16, 16), np.int16)
    mostly_air[2, 6, 6] = 9
    build_metaimage.save(case / "t2w.mha", mostly_air, T2W)
    assert made(case, {**take, "intensity": "percentile"}).picture.array_CHW.max() == 255


def test_masks_that_choose_no_slice(case):
    (case / "lesion.mha").unlink()
    with pytest.raises(ReadError, match=r"slice rule lesion: the lesion mask of this file is missing \(1 places"):
        made(case)
    save_mask(case, [0] * 6)
    with pytest.raises(ReadError, match="slice rule gland: the gland mask is empty, so it chooses no slice"):
        made(case, GLAND)
    outside = np.zeros((6, 16, 16), np.uint8)
    outside[3, 0, 0] = 1
    build_metaimage.save(case / "lesion.mha", outside, T2W)
    with pytest.raises(ReadError, match="the lesion mask lies outside the cropped field"):
        made(case)
    Image.fromarray(outside[3]).save(case / "lesion.png")
    with pytest.raises(ReadError, match="the lesion mask is a picture and no volume"):
        made(case, {**TAKE, "slice": {"rule": "lesion", "masks": ["lesion.png"]}})


def test_scans_that_cannot_be_used(case):
    (case / "dwi.mha").unlink()
    with pytest.raises(ReadError, match="channel 2: the file is missing"):
        made(case)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), T2W), case / "b.nii")
    with pytest.raises(SeriesError, match="channel 2: one volume is needed, it holds 3 volumes"):
        made(case, {**TAKE, "channels": ["adc.mha", "b.nii"]})
    Image.fromarray(build_source.picture(0)).save(case / "p.png")
    with pytest.raises(SeriesError, match="the file: one volume is needed, it holds a Picture"):
        made(case, row={"file": "p.png"})
    build_metaimage.save(case / "dwi.mha", np.full((6, 16, 16), 5, np.int16), T2W)
    with pytest.raises(RangeError, match="channel 2: every voxel is 5: the scan is empty"):
        made(case)
    far = T2W.copy()
    far[2, 3] = 500.0
    build_metaimage.save(case / "dwi.mha", np.arange(1536, dtype=np.int16).reshape(6, 16, 16), far)
    with pytest.raises(ReadError, match="channel 2: it does not reach the chosen slice; the scans lie at different"):
        made(case)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing_mm": [3, 0, 0.5]}, "spacing_mm must be above 0"),
        ({"crop": [30, 300, 0]}, "crop at least 1 voxel along each axis"),
        ({"windows": {"lung": "lung"}}, "modalities are scaled by intensity; windows are for CT"),
        (
            {"slice": {"rule": "largest", "masks": ["a"]}},
            "samples.0.modalities.slice.rule: Input should be 'lesion' or",
        ),
        ({"slice": {"rule": "lesion", "masks": []}}, "slice.masks: Tuple should have at least 1 item"),
        ({"slice": {"rule": "lesion", "mask": "a"}}, r"key .*slice\.mask' is unknown\. Did you mean .masks.\?"),
        ({"intensity": "as-is"}, "intensity: Input should be 'volume-range' or 'percentile'"),
    ],
)
def test_descriptions_that_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, {**TAKE, **changes})


def test_the_papers_numbers_are_the_defaults(tmp_path):
    take = build_source.source(tmp_path, fields={}, samples=[{k: v for k, v in TAKE.items() if k != "crop"}]).samples[0]
    assert (take.spacing_mm, take.crop, take.intensity) == ((3.0, 0.5, 0.5), (30, 300, 300), "volume-range")
    assert issubclass(ReadError, InputError)  # what a case is quarantined for

"""Given anatomy: kept voxel for voxel at both grids, brought from any grid, refused where it cannot be meant."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import build_medsyn as build
from medisyn.errors import InputError, RangeError
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.families.medsyn.channels import channels_from_sample
from medisyn.families.medsyn.config import MedSynConfig
from medisyn.generation.volume_files.nifti import nifti_bytes
from medisyn.recipes.fixed_channels import (
    CONFLICT,
    NO_REPORT,
    Fixing,
    channels_of,
    find_anatomies,
    generate_anatomy,
)
from medisyn.types import Request

CHEST = build.chest(size=16)
PROMPT = "Large right pleural effusion."


def family() -> MedSyn:
    return MedSyn(build.base(), build.superres())


def write(folder: Path, masks=("lobe", "airway", "vessel"), sample=CHEST, head="", **other) -> Path:
    """The masks of a chest as files; `other` replaces a mask by an array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in masks:
        array = other.get(name, sample.masks[name])
        (folder / f"{head}{name}.nii.gz").write_bytes(nifti_bytes(array, sample.item.affine, {}, intent=name))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "cascade"
    family().save(folder)
    return str(folder)


def request(prompt=PROMPT, key="a") -> Request:
    return Request(key=key, prompt=prompt, seed=3)


# ---- sampling


def test_given_channels_come_out_as_they_went_in_at_both_grids_and_the_rest_follows():
    whole = family()
    known = _known(whole.grid)
    asked = [whole.resolve(request())]
    fixed = Fixing(whole, lambda _: known).sample(asked)
    assert torch.equal(fixed[0, 1], known["lobe"])
    base_alone = MedSyn(whole.base)
    low = {name: channel[::2, ::2, ::2] for name, channel in known.items()}
    coarse = Fixing(base_alone, lambda _: low).sample(asked)
    assert torch.equal(coarse[0, 1], low["lobe"])
    assert not torch.equal(fixed[0, 0], whole.sample(asked)[0, 0])  # the CT is another one around these lobes


def _known(grid, names=("lobe",)):
    return dict(zip(names, channels_from_sample(CHEST, grid, names), strict=True))


def test_without_given_channels_it_is_the_cascade_bit_for_bit():
    whole = family()
    asked = [whole.resolve(request(key=key)) for key in "ab"]
    assert torch.equal(Fixing(whole, lambda _: {}).sample(asked), whole.sample(asked))


def test_the_mean_is_one_call_of_the_finest_network_on_noise_around_the_same_base_volume():
    share = replace(build.SUPERRES, given_share=0.4)
    whole = MedSyn(build.base(), build.superres(config=share))
    known, asked = _known(whole.grid), [whole.resolve(request())]
    fixing = Fixing(whole, lambda _: known)
    sample, mean = fixing.sample_and_mean(asked)
    assert torch.equal(sample, fixing.sample(asked))
    low = whole.base.sample(asked, [{name: channel[::2, ::2, ::2] for name, channel in known.items()}])
    once = whole.with_defaults(solver="renoise").superres
    assert torch.equal(mean, once.upscale(low, [asked[0].seed], steps=1, known=[known]))
    assert not torch.equal(sample, mean)
    alone = MedSyn(build.base(config=MedSynConfig(given_share=0.4)))
    first, its_mean = Fixing(alone, lambda _: _known(build.GRID)).sample_and_mean(asked)
    one_call = alone.with_defaults(solver="renoise").base.sample([replace(asked[0], steps=1)], [_known(build.GRID)])
    assert torch.equal(its_mean, one_call)
    assert not torch.equal(first, its_mean)


@pytest.mark.parametrize("refined", [True, False])
def test_a_network_that_never_sees_given_channels_in_noise_has_no_mean_but_its_sample(refined):
    """Published weights are such: at pure noise they would draw the masks of nobody's CT."""
    whole = family() if refined else MedSyn(build.base())
    asked = [whole.resolve(request())]
    sample, mean = Fixing(whole, lambda _: _known(whole.grid)).sample_and_mean(asked)
    assert torch.equal(sample, mean)


def test_super_resolution_sees_what_is_given():
    refiner = build.superres()
    low = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    plain = refiner.upscale(low, [5], known=[{}])
    assert torch.equal(plain, refiner.upscale(low, [5]))
    kept = refiner.upscale(low, [5], known=[_known(refiner.grid)])
    assert not torch.equal(kept[0, 0], plain[0, 0])


def test_no_report_is_the_learned_null_text():
    whole = family()
    known = _known(whole.grid)
    nothing = Fixing(whole, lambda _: known).sample([whole.resolve(request(NO_REPORT))])
    low = {name: channel[::2, ::2, ::2] for name, channel in known.items()}
    expected = whole.base.sample([whole.resolve(request(""))], [low])
    again = whole.superres.upscale(expected, [3], known=[known])
    assert torch.equal(nothing, again)


def test_channels_come_from_the_requests_alone():
    whole = family()
    with pytest.raises(InputError, match="takes its given channels from the requests"):
        Fixing(whole, lambda _: {}).sample([request()], [{}])


# ---- reading masks


@pytest.mark.parametrize("turn", [(0, 1, 2), (2, 0, 1)])
def test_masks_of_other_orientation_and_spacing_give_the_same_channels(tmp_path, turn):
    """Axes stored in another order, and each voxel cut in two along every axis."""
    folder = tmp_path / "a"
    folder.mkdir()
    spacing_matrix = CHEST.item.affine
    for name in ("lobe", "airway"):
        fine = CHEST.masks[name].repeat(2, 0).repeat(2, 1).repeat(2, 2).transpose(turn)
        affine = np.eye(4)
        affine[:3, :3] = spacing_matrix[:3, :3][:, list(turn)] / 2
        shift = spacing_matrix[:3, :3].sum(axis=1) / 4  # the first half-voxel lies a quarter before the old centre
        affine[:3, 3] = spacing_matrix[:3, 3] - shift
        (folder / f"{name}.nii.gz").write_bytes(nifti_bytes(np.ascontiguousarray(fine), affine, {}, intent=name))
    (one,) = find_anatomies(tmp_path)
    found = channels_of(one, build.superres().grid)
    wanted = _known(build.superres().grid, ("lobe", "airway"))
    assert set(found) == {"lobe", "airway"}
    for name, channel in wanted.items():
        assert torch.equal(found[name], channel), name


def test_a_scan_of_other_spacing_is_placed_by_its_middle(tmp_path):
    """A cube of lobe in the middle of a 10 mm grid of 60 voxels: 20 x 22 x 22 mm voxels hold it in the middle too."""
    lobe = np.zeros((60, 60, 60), np.uint8)
    lobe[20:40, 20:40, 20:40] = 3
    affine = np.diag([10.0, 10, 10, 1])[[2, 1, 0, 3]]
    (tmp_path / "lobe.nii.gz").write_bytes(nifti_bytes(lobe, affine, {}, intent="lobe"))
    channel = channels_of(find_anatomies(tmp_path)[0], build.superres().grid)["lobe"].numpy()
    inside = np.argwhere(channel > -1)
    np.testing.assert_allclose(inside.mean(axis=0), 7.5)
    assert len(inside) == 1000  # 100 mm to either side: five voxels of 20 or 22 mm, the last centre at 90 or 99 mm
    assert np.unique(channel) == pytest.approx([-1, 0.2])


def test_folders_are_numbered_and_phantoms_keep_their_names(tmp_path):
    write(tmp_path / "a" / "Mustermann")
    write(tmp_path / "a", masks=("lobe",), head="scan-")
    write(tmp_path / "b" / "thorax-000007", masks=("lobe", "airway"))
    found = find_anatomies(tmp_path / "a")
    assert [one.key for one in found] == ["anatomy-0001", "anatomy-0002"]
    assert sorted(map(list, (one.masks for one in found))) == [["lobe"], ["lobe", "airway", "vessel"]]
    assert [one.key for one in find_anatomies(tmp_path / "b", ("airway",))] == ["thorax-000007"]
    assert list(find_anatomies(tmp_path / "b", ("airway",))[0].masks) == ["airway"]


def test_masks_that_cannot_be_kept(tmp_path):
    grid = build.superres().grid
    empty = np.zeros((16, 16, 16), np.uint8)

    def refused(message, error=InputError, masks=("lobe",), **other):
        folder = write(tmp_path / message[:12].replace(" ", "").replace("'", ""), masks=masks, **other)
        with pytest.raises(error, match=message):
            channels_of(find_anatomies(folder)[0], grid)

    refused("mask 'airway' is empty. Fixed, it would forbid", masks=("lobe", "airway"), airway=empty)
    refused(
        "mask 'lobe' holds 0, 9; allowed are whole numbers from 0 to 5",
        RangeError,
        lobe=empty + 9 * CHEST.masks["airway"],
    )
    refused(
        r"'airway' \(8 x 16 x 16 voxels .*lies on another grid than mask 'lobe'",
        masks=("lobe", "airway"),
        airway=CHEST.masks["airway"][:8],
    )
    corner = np.zeros((200, 16, 16), np.uint8)
    corner[0] = 1
    refused("nothing of mask 'airway' lies on the model's grid of 16 x 16 x 16", masks=("airway",), airway=corner)
    four = tmp_path / "four"
    four.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8, 2), np.uint8), np.eye(4)), four / "lobe.nii.gz")
    with pytest.raises(InputError, match="mask 'lobe' is no volume of one channel"):
        channels_of(find_anatomies(four)[0], grid)


def test_what_is_named_wrongly(tmp_path):
    folder = write(tmp_path / "masks", masks=("lobe",))
    (tmp_path / "empty").mkdir()
    for fix, message in ((("ct",), "use `medisyn generate segment"), (("lobes",), "Did you mean 'lobe'|mean lobe")):
        with pytest.raises(InputError, match=message):
            find_anatomies(folder, fix)
    with pytest.raises(InputError, match="there is no mask of vessel to fix; there are: lobe"):
        find_anatomies(folder, ("lobe", "vessel"))
    with pytest.raises(InputError, match=r"holds no mask. Looked for: lobe\.nii\.gz"):
        find_anatomies(tmp_path / "empty")
    with pytest.raises(InputError, match="there is no folder or table 'none'"):
        find_anatomies(tmp_path / "none")
    with pytest.raises(InputError, match="give the folder of the masks, or a table"):
        find_anatomies(folder / "lobe.nii.gz")


def table(folder: Path, *rows: dict[str, str]) -> Path:
    with (folder / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "a.csv"


def test_a_table_of_anatomies(tmp_path):
    write(tmp_path / "x", masks=("lobe",))
    good = {"lobe": "x/lobe.nii.gz", "key": "one", "prompt": " Effusion. "}
    (found,) = find_anatomies(table(tmp_path, good))
    assert (found.key, found.prompt, list(found.masks)) == ("one", "Effusion.", ["lobe"])
    for rows, message in (
        ([{"mask": "x"}], r"no column of masks \(lobe, airway, vessel\)"),
        ([good, {**good, "lobe": "y.nii.gz", "key": "two"}], "row 2: the file of mask 'lobe' is not there"),
        ([{**good, "lobe": ""}], "row 1: it names no mask"),
        ([{**good, "key": "a/b"}], "row 1: the key becomes a file name"),
        ([good, good], "the key 'one' occurs twice"),
    ):
        with pytest.raises(InputError, match=message):
            find_anatomies(table(tmp_path, *rows))


# ---- files


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_text_and_anatomy_anatomy_alone_and_resuming(model, tmp_path):
    write(tmp_path / "masks")
    options = {"masks": tmp_path / "masks", "model": model, "dtype": "float32"}
    report = generate_anatomy(PROMPT, fix=("airway", "lobe"), out=tmp_path / "both", **options)
    assert report.made == 1
    (both,) = records(tmp_path / "both")
    assert (both["prompt"], both["fixed"], both["conflict"]) == (PROMPT, "lobe, airway", CONFLICT)
    lobe = nibabel.load(tmp_path / "both" / "anatomy-0001-000-lobe.nii.gz")
    np.testing.assert_array_equal(np.asarray(lobe.dataobj).transpose(2, 1, 0), CHEST.masks["lobe"])
    assert generate_anatomy(PROMPT, fix=("airway", "lobe"), out=tmp_path / "both", **options).skipped == 1
    with pytest.raises(InputError, match="with metadata"):  # another anatomy is another run
        generate_anatomy(PROMPT, fix=("lobe",), out=tmp_path / "both", **options)
    generate_anatomy(out=tmp_path / "alone", n=2, guidance=3.0, **options)
    one, two = records(tmp_path / "alone")
    assert (one["prompt"], one["conflict"], one["fixed"]) == (NO_REPORT, "", "lobe, airway, vessel")
    assert one["seed"] != two["seed"]


def test_prompts_from_two_places_and_models_of_pictures(model, tmp_path):
    write(tmp_path, masks=("lobe",))
    named = table(tmp_path, {"lobe": "lobe.nii.gz", "prompt": "Effusion."})
    with pytest.raises(InputError, match="the table has prompts of its own"):
        generate_anatomy(PROMPT, masks=named, model=model, out=tmp_path / "out", dtype="float32")
    import build as pictures

    folder = pictures.tiny_folder(tmp_path / "sd")
    with pytest.raises(InputError, match="makes no CT volumes, and channels are fixed in those"):
        generate_anatomy(PROMPT, masks=named.parent, model=str(folder), dtype="float32")

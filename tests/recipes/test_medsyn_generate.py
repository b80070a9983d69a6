"""CT volumes with masks from prompts: files, records, resuming, and options that do not apply."""

import base64
import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

import build_medsyn as build
from medisyn.errors import ConfigError, InputError
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.generation.provenance import read
from medisyn.recipes.generate_images import generate_images
from medisyn.recipes.medsyn_corpus import MASKS, CtData, CtReader, find_cts

PROMPT = "Large right pleural effusion. No cardiomegaly."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "cascade"
    MedSyn(build.base(), build.superres()).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    report = generate_images(PROMPT, model=model, n=2, out=out, dtype="float32", dicom=True)
    return out, report


def records(out: Path):
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_files_and_records(made):
    out, report = made
    assert (report.made, report.skipped) == (2, 0)
    assert "2 CT volumes with masks, 2 made" in report.summary()
    first, second = records(out)
    assert first["prompt"] == PROMPT
    assert first["seed"] != second["seed"]
    assert (first["depth"], first["height"], first["width"]) == (16, 16, 16)
    assert (first["steps"], first["guidance"], first["superres_steps"], first["solver"]) == (2, 1.0, 2, "ddim")
    ct = nibabel.load(out / first["file_name"])
    np.testing.assert_allclose(ct.header.get_zooms(), (22, 22, 20))
    assert first["spacing_mm"] == [20, 22, 22]
    assert nibabel.aff2axcodes(ct.affine) == ("L", "P", "S")
    for mask in MASKS:
        file = nibabel.load(out / f"{first['key']}-{mask}.nii.gz")
        np.testing.assert_array_equal(file.affine, ct.affine)
    assert read(out / "planes" / f"{first['key']}.png")["seed"] == first["seed"]
    slices = sorted((out / "dicom" / first["key"] / "ct").glob("*.dcm"))
    assert len(slices) == 16
    assert pydicom.dcmread(slices[0]).PixelSpacing == [22, 22]


def test_the_ct_is_what_the_model_makes_whatever_is_made_beside_it(made, model, tmp_path):
    out, _ = made
    first, second = records(out)
    generate_images(PROMPT, model=model, n=2, out=tmp_path / "both", dtype="float32", batch_size=2)
    for record in (first, second):
        alone = np.asarray(nibabel.load(out / record["file_name"]).dataobj)
        together = np.asarray(nibabel.load(tmp_path / "both" / record["file_name"]).dataobj)
        assert np.abs(alone.astype(int) - together.astype(int)).max() <= 1  # rounding to whole HU


def test_the_same_call_makes_what_is_missing(made, model):
    out, _ = made
    victim, kept = (out / record["file_name"] for record in records(out))
    content, time = victim.read_bytes(), kept.stat().st_mtime_ns
    victim.unlink()
    report = generate_images(PROMPT, model=model, n=2, out=out, dtype="float32", dicom=True)
    assert (report.made, report.skipped) == (1, 1)
    assert victim.read_bytes() == content
    assert kept.stat().st_mtime_ns == time
    assert len(records(out)) == 2
    assert (
        "none left to make" in generate_images(PROMPT, model=model, n=2, out=out, dtype="float32", dicom=True).summary()
    )


def test_the_gallery_shows_the_planes(made, model, tmp_path):
    out, _ = made
    page = tmp_path / "page.html"
    generate_images(PROMPT, model=model, n=2, out=out, dtype="float32", dicom=True, gallery=page)
    html = page.read_text()
    for record in records(out):
        planes = (out / "planes" / f"{record['key']}.png").read_bytes()
        assert base64.b64encode(planes).decode() in html
        with Image.open(io.BytesIO(planes)) as picture:
            assert f'width="{picture.width}" height="{picture.height}"' in html
    assert html.count('<figure class="wide">') == 2
    assert "16 × 16 × 16 voxels of 20 × 22 × 22 mm" in html
    assert "s per volume after loading" in html


def test_generated_volumes_are_a_corpus_again(made):
    out, _ = made
    (out / "dicom").rename(out.parent / "dicom")
    found = find_cts(out)
    assert [set(files.masks) for files in found] == [set(MASKS)] * 2
    sample = CtReader(out, found, CtData(report="A."), build.GRID)(0)
    assert sample.metadata["resampled"] is False
    (out.parent / "dicom").rename(out / "dicom")


def test_steps_guidance_and_solver_are_followed(model, tmp_path):
    def ct(**options):
        name = "-".join(map(str, options.values()))
        generate_images(PROMPT, model=model, out=tmp_path / name, dtype="float32", **options)
        (record,) = records(tmp_path / name)
        return np.asarray(nibabel.load(tmp_path / name / record["file_name"]).dataobj), record

    plain, _ = ct(seed=0)
    for option, value in (("steps", 3), ("guidance", 3.0), ("solver", "dpmpp-2m"), ("seed", 5)):
        changed, record = ct(**{option: value})
        assert not np.array_equal(changed, plain), option
        if option != "seed":
            assert record[option] == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 2}, "--processes does not apply: a CT model makes volumes"),
        ({"reject": lambda requests, pixels: [None]}, "--reject-copies-of does not apply"),
        ({"height": 512}, "height 512 is not the model's 8"),
        ({"negative_prompt": "Effusion."}, "a negative prompt works through guidance, and guidance 1 is none"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_apply(model, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        generate_images(PROMPT, model=model, out=tmp_path / "out", dtype="float32", **options)


def test_what_a_ct_model_cannot_read(model, tmp_path):
    with pytest.raises(InputError, match="a CT model reads one report; it neither combines prompts with AND"):
        generate_images("Effusion. AND Nodule.", model=model, out=tmp_path / "a", dtype="float32")
    (tmp_path / "b.csv").write_text("prompt,toward_prompt,toward_share\nA.,B.,0.5\n")
    with pytest.raises(InputError, match="nor goes from one to another"):
        generate_images(prompts=tmp_path / "b.csv", model=model, out=tmp_path / "b", dtype="float32")
    with pytest.raises(ConfigError, match="euler"):
        generate_images(PROMPT, model=model, out=tmp_path / "c", dtype="float32", solver="euler")


def test_a_folder_of_something_else(model, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds volumes but no run.json"):
        generate_images(PROMPT, model=model, out=tmp_path, dtype="float32")


def test_dicom_is_for_volumes(tmp_path):
    import build as pictures

    folder = pictures.tiny_folder(tmp_path / "sd")
    with pytest.raises(InputError, match="--dicom does not apply: this model makes pictures"):
        generate_images("A chest X-ray", model=str(folder), out=tmp_path / "out", dtype="float32", dicom=True)


def test_what_is_for_pictures_is_refused_for_volumes(model, tmp_path):
    from medisyn.recipes.inpaint_images import inpaint_images
    from medisyn.recipes.interpolate_images import interpolate_images

    with pytest.raises(InputError, match="interpolation works on pictures; cascade makes CT volumes"):
        interpolate_images(PROMPT, "No effusion.", frames=2, n=1, model=model, out=tmp_path / "a", dtype="float32")
    with pytest.raises(InputError, match="inpainting works on pictures; cascade makes CT volumes"):
        inpaint_images(
            PROMPT, image=build_picture(tmp_path), mask="box:0,0,4,4", model=model, out=tmp_path / "b", dtype="float32"
        )


def build_picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "grey.png"
    Image.new("L", (16, 16), 90).save(path)
    return path

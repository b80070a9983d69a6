"""`medisyn evaluate` on folders of clips and of CT volumes, and on a model's autoencoder."""

import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import build
from build_corpus import tiny_corpus
from medisyn import runs
from medisyn.cli import main
from medisyn.errors import ConfigError, InputError, ModelError, RangeError, ReadError
from medisyn.evaluation.evaluate import result_from_dict
from medisyn.evaluation.features.encoder import MedicalEncoder, save_network
from medisyn.evaluation.ssim import ssim
from medisyn.recipes.evaluate_clips import evaluate_clips, frame_step, read_clip, rgb_frames
from medisyn.recipes.evaluate_folder import evaluate_folder, kind_of
from medisyn.recipes.evaluate_images import EvaluateSettings
from medisyn.recipes.evaluate_sets import SetSettings, files_fingerprint, halves, listed
from medisyn.recipes.evaluate_stages import evaluate_stages, open_autoencoder
from medisyn.recipes.evaluate_volumes import as_cube, evaluate_volumes, read_hu


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MedicalEncoder(["a", "b"], widths=(8, 16), size=16)
    folder = tmp_path_factory.mktemp("encoder")
    save_network(network, folder, network.config)
    return folder


# ---- clips


def frames(seed, moving=1, count=12):
    """A bright square that moves `moving` pixels a frame over noise, (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(rng.integers(0, 60, (1, 20, 20, 1)), count, axis=0).repeat(3, axis=3).astype(np.uint8)
    for t in range(count):
        clip[t, 5:12, (2 + moving * t) % 12 : (2 + moving * t) % 12 + 6] += 150
    return clip


def clip_folder(folder, count, start=0, **options):
    folder.mkdir()
    for number in range(count):
        clip_THWC = frames(start + number, **options)
        np.savez_compressed(folder / f"{number:02d}.npz", array_CTHW=clip_THWC.transpose(3, 0, 1, 2))
    return folder


def test_clips_against_clips(encoder, tmp_path, capsys):
    generated = clip_folder(tmp_path / "g", 8, start=100, moving=0)
    runs.write_run(generated, kind="generate", model={"id": "m", "digest": "d" * 64, "solver": "ddim"})
    real = clip_folder(tmp_path / "r", 16)
    arguments = ["evaluate", str(generated), "--against", str(real), "--weights", str(encoder), "--resamples", "5"]
    assert main([*arguments, "--cache", str(tmp_path / "c"), "--out", str(tmp_path / "o"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result_from_dict(result).measure("kid").value == result["measures"][1]["value"]
    assert {measure["n_first"] for measure in result["measures"]} == {8}
    assert result["measures"][0]["extractor"].startswith("medical-encoder-frames:")
    assert result["asked"]["kind"] == "clips"
    # the generated clips stand still, which the frame steps say whatever the extractor sees
    assert result["motion"]["generated"]["mean"] == 0.0
    still, other = (result["motion"][name]["wasserstein"] for name in ("generated", "real, for the baseline"))
    assert still == pytest.approx(result["motion"]["real"]["mean"], rel=1e-9)  # all the mass moves to 0
    assert other < 0.2 * still
    page = (tmp_path / "o" / "report.html").read_text()
    assert "Distances to real clips" in page
    assert "How much moves from frame to frame" in page
    assert "Fewer than 100 items" in page
    run = json.loads((tmp_path / "o" / "run.json").read_text())
    assert run["kind"] == "evaluate clips"
    assert run["model"] == result["model"] == {"id": "m", "digest": "d" * 64}
    assert run["corpus"] == result["corpus"] == files_fingerprint(listed(real, (".npz",), rgb_frames))


def test_readers_of_clips(tmp_path):
    original = frames(0)
    pictures = [Image.fromarray(frame) for frame in original]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=50)
    gif = read_clip(tmp_path / "a.gif")
    assert gif.array_CTHW.shape == (3, 12, 20, 20)
    assert np.abs(gif.array_CTHW.transpose(1, 2, 3, 0).astype(int) - original).max() <= 8  # 256 colours
    np.savez(tmp_path / "grey.npz", array_CTHW=original[None, ..., 0])
    assert rgb_frames(tmp_path / "grey.npz").shape == (12, 20, 20, 3)
    np.testing.assert_array_equal(rgb_frames(tmp_path / "grey.npz")[..., 2], original[..., 0])


def test_frame_step_by_hand():
    clip = np.zeros((3, 2, 2, 3), np.uint8)
    clip[1] = 10
    clip[2] = 250  # steps of 10 and 240, also where bytes would wrap
    assert frame_step(clip) == 125.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"clip": np.zeros((1, 2, 4, 4), np.uint8)}, r"no array named array_CTHW; it holds clip"),
        ({"array_CTHW": np.zeros((2, 2, 4, 4), np.uint8)}, r"must be uint8 \(1 or 3, T, H, W\), got \(2, 2, 4, 4\)"),
        ({"array_CTHW": np.zeros((1, 2, 4, 4))}, "float64"),
        (None, r"x\.npz: not a readable clip"),
    ],
)
def test_files_that_are_no_clips(tmp_path, content, message):
    path = tmp_path / "x.npz"
    path.write_bytes(b"x") if content is None else np.savez(path, **content)
    with pytest.raises(ReadError, match=message):
        read_clip(path)


# ---- volumes


def write_ct(path, seed, low=-1000.0, high=400.0, flip=False):
    """A soft sphere of tissue in air, 24 voxels a side, RAS affine of 2 mm."""
    grid = np.linalg.norm(
        np.indices((24, 24, 24)) - 11.5 - np.random.default_rng(seed).uniform(-3, 3, (3, 1, 1, 1)), axis=0
    )
    hu = np.where(grid < 8, 40.0, -900.0) + np.random.default_rng(seed).normal(0, 20, grid.shape)
    hu = np.clip(hu, low, high).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    if flip:
        hu, affine = hu[:, :, ::-1], affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 23], [0, 0, 0, 1.0]])
    nibabel.Nifti1Image(hu, affine).to_filename(path)


def ct_folder(folder, count, start=0):
    folder.mkdir()
    for number in range(count):
        write_ct(folder / f"{number:02d}.nii.gz", start + number)
    return folder


def test_volumes_against_volumes(encoder, tmp_path, capsys):
    generated, real = ct_folder(tmp_path / "g", 7, start=50), ct_folder(tmp_path / "r", 14)
    arguments = ["evaluate", str(generated), "--against", str(real), "--weights", str(encoder), "--resamples", "5"]
    arguments += ["--cache", str(tmp_path / "c"), "--out", str(tmp_path / "o"), "--diversity-pairs", "2"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "mmd" in text
    assert "Note: 7 items and 16 features: the covariances have no full rank" in text
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert result["measures"][0]["preprocessing"].startswith("32-even-axial-slices-hu-1024..600")
    assert result["diversity"]["generated"][-1]["num_pairs"] == 2
    assert result["diversity"]["generated"][-1]["scales"] == 4
    assert "Each real file counts as a patient of its own" in (tmp_path / "o" / "report.html").read_text()


def test_a_volume_is_upright_whatever_the_file_s_axes(tmp_path):
    write_ct(tmp_path / "a.nii.gz", 3)
    write_ct(tmp_path / "b.nii.gz", 3, flip=True)
    np.testing.assert_array_equal(read_hu(tmp_path / "a.nii.gz"), read_hu(tmp_path / "b.nii.gz"))
    cube = as_cube(lambda: read_hu(tmp_path / "a.nii.gz"))
    assert cube.shape == (1, 96, 96, 96)
    assert -1024 <= cube.min() < cube.max() <= 600


def test_volumes_that_are_not_hu(tmp_path):
    folder = tmp_path / "g"
    folder.mkdir()
    image = nibabel.Nifti1Image(np.random.default_rng(0).uniform(0, 1, (8, 8, 8)).astype(np.float32), np.eye(4))
    image.to_filename(folder / "a.nii")
    with pytest.raises(RangeError, match=r"a volume of g/: .*not Hounsfield units"):
        read_hu(folder / "a.nii")
    four = np.random.default_rng(0).uniform(-900, 900, (8, 8, 8, 2)).astype(np.float32)
    nibabel.Nifti1Image(four, np.eye(4)).to_filename(folder / "b.nii")
    with pytest.raises(InputError, match="no CT volume with one channel"):
        read_hu(folder / "b.nii")


# ---- folders, halves, kinds


def test_halves_share_no_patient(tmp_path):
    folder = clip_folder(tmp_path / "r", 9)
    records = [{"file_name": f"{n:02d}.npz", "patient": f"p{n // 3}", "image_type": "echo"} for n in range(9)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    items = listed(folder, (".npz",), rgb_frames)
    assert [item.patient for item in items] == [f"p{n // 3}" for n in range(9)]
    assert items[0].name == "echo"
    first, second = halves(items, 0)
    assert {item.patient for item in first} & {item.patient for item in second} == set()
    assert sorted(len(part) for part in (first, second)) == [3, 6]
    assert halves(items, 0) == (first, second)
    with pytest.raises(InputError, match="needs two patients or files, got 1"):
        halves(items[:3], 0)


def test_the_kind_is_what_the_folder_holds(tmp_path):
    clips, volumes = clip_folder(tmp_path / "c", 1), ct_folder(tmp_path / "v", 1)
    (tmp_path / "i").mkdir()
    corpus = tiny_corpus(tmp_path / "corpus")
    assert [kind_of(folder) for folder in (clips, volumes, tmp_path / "i", corpus)] == [
        "clips",
        "volumes",
        "images",
        "images",
    ]
    with pytest.raises(InputError, match="holds volumes and clips"):
        kind_of(tmp_path)
    with pytest.raises(InputError, match="there is no folder gone/"):
        kind_of(tmp_path / "gone")
    with pytest.raises(InputError, match=r"i/ holds no file that ends in \.npz, \.gif"):
        listed(tmp_path / "i", (".npz", ".gif"), rgb_frames)


def test_settings_of_images_are_refused_for_others(tmp_path):
    clips = clip_folder(tmp_path / "c", 2)
    with pytest.raises(ConfigError, match="neighbours, diversity_pairs: only images have this; clips are compared"):
        evaluate_folder(clips, clips, EvaluateSettings(neighbours=3, diversity_pairs=1))
    with pytest.raises(
        ConfigError, match="clip: only images are looked for among the prompts of their classes, not clips"
    ):
        evaluate_folder(clips, clips, EvaluateSettings(), clip=tmp_path)
    with pytest.raises(ConfigError, match="'med3d' takes volumes, these are clips"):
        evaluate_folder(clips, clips, EvaluateSettings(), extractor="med3d")


def test_copies_of_real_files_are_named(encoder, tmp_path):
    real = clip_folder(tmp_path / "r", 12)
    places = {"weights": encoder, "cache": tmp_path / "c", "out": tmp_path / "o"}
    settings = SetSettings(extractor="medical-encoder-frames", resamples=2, mmd_alpha=0.5)
    found = evaluate_clips(real, real, settings, **places)
    assert any("12 generated files are byte for byte among the real ones" in note for note in found.warnings)
    assert found.result.measure("mmd").kernel_alpha == 0.5


def test_too_few_volumes_are_named(encoder, tmp_path):
    generated, real = ct_folder(tmp_path / "g", 2), ct_folder(tmp_path / "r", 14, start=20)
    with pytest.raises(InputError, match=r"generated set: .* need at least 6 images, got 2"):
        evaluate_volumes(generated, real, weights=encoder, cache=tmp_path / "c", out=tmp_path / "o")


# ---- stages


def test_the_stage_check_of_a_model(tmp_path, capsys):
    model = build.tiny_folder(tmp_path / "model")
    corpus = tiny_corpus(tmp_path / "corpus", count=20)
    arguments = ["evaluate", str(model), "--stages", "--against", str(corpus), "--split", "train", "--count", "5"]
    assert main([*arguments, "--out", str(tmp_path / "o"), "--resamples", "10", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (stage,) = result["stages"]
    assert (stage["n"], len(stage["ssim_N"]), stage["verdict"]) == (5, 5, "fine-tune")  # random weights
    assert stage["ssim"]["range"] == pytest.approx(max(stage["ssim_N"]) - min(stage["ssim_N"]))
    page = (tmp_path / "o" / "report.html").read_text()
    assert "Stage B (MediSyn v1)" in page
    assert "0.8328" in page
    assert (tmp_path / "o" / "stages.csv").is_file()
    assert main([*arguments, "--out", str(tmp_path / "again"), "--resamples", "10"]) == 0
    assert "5 images: fine-tune (mean SSIM" in capsys.readouterr().out


def test_odd_sides_come_back_as_they_were(tmp_path):
    model = build.tiny_folder(tmp_path / "model")
    name, rebuild = open_autoencoder(str(model))
    assert name == "autoencoder of model"
    picture = np.random.default_rng(0).integers(0, 256, (31, 33, 3), dtype=np.uint8)
    rebuilt = rebuild([picture])[0]
    assert rebuilt.shape == picture.shape
    assert rebuilt.dtype == np.uint8
    assert open_autoencoder(str(model / "vae"))[0] == "vae"
    value = ssim(picture.transpose(2, 0, 1)[None], rebuilt.transpose(2, 0, 1)[None], data_range=255)[0]
    assert value < 0.5


def test_stage_refusals(tmp_path):
    corpus = tiny_corpus(tmp_path / "corpus", count=20)
    with pytest.raises(InputError, match="at least 2 images, got a count of 1"):
        evaluate_stages("x", corpus, count=1)
    model = build.tiny_folder(tmp_path / "model")
    (model / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="the autoencoder cannot be opened"):
        open_autoencoder(str(model))
    (model / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match="model holds no autoencoder"):
        open_autoencoder(str(model))


def test_stages_take_no_extractor(tmp_path, capsys):
    assert main(["evaluate", "x", "--stages", "--against", "y", "--extractor", "inception"]) == 2
    assert "have no use with --stages" in capsys.readouterr().err

"""The membership attack on models of CT volumes and of clips: what is read, losses worked by hand, and refusals."""

import json

import nibabel
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import build
import build_higen
import build_medsyn
from build_audit import smooth, tiny_encoder
from medisyn import runs
from medisyn.errors import ConfigError, CorpusError, InputError
from medisyn.evaluation.features import load_extractor
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.generation.clip_files import write_ffv1
from medisyn.phantoms.folder import nifti_bytes
from medisyn.recipes.audit import audit
from medisyn.recipes.higen_corpus import ClipData, ClipReader
from medisyn.recipes.medsyn_corpus import MASKS
from medisyn.recipes.membership_attack import AttackSettings, attack_model, denoising_losses, open_attacked
from medisyn.recipes.membership_stacks import need_held_out, stack_sides, trained_by
from medisyn.recipes.stack_search import StackSettings
from medisyn.types import Clip, Sample

FEW = {"draws": 2, "device": "cpu", "dtype": "float32"}
RECORD = {"prompt": "p", "seed": 1, "model": "m", "model_digest": "d"}
AFFINE = build_medsyn.chest().item.affine


def lines_in(folder, lines):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def cts_in(folder, levels, masks=MASKS, report="No effusion."):
    """CTs with air (-1024 HU) in the lower half and one HU in the upper, empty masks and a report, each in a folder."""
    for name, hu in levels.items():
        (folder / name).mkdir(parents=True)
        array_DHW = np.full((16, 16, 16), -1024, np.int16)
        array_DHW[8:] = hu
        (folder / name / "ct.nii.gz").write_bytes(nifti_bytes(array_DHW, AFFINE))
        for mask in masks:
            (folder / name / f"{mask}.nii.gz").write_bytes(nifti_bytes(np.zeros((16,) * 3, np.uint8), AFFINE))
        (folder / name / "report.txt").write_text(report)
    return folder


def clips_in(folder, arrays, caption=build_higen.CAPTIONS[0]):
    for name, array_CTHW in arrays.items():
        write_ffv1(folder / name / "clip.mkv", Clip(array_CTHW), RECORD)
        (folder / name / "caption.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def ct_model(tmp_path_factory):
    """A base model that answers -1 everywhere, for any noise: air, and no mask."""
    base = build_medsyn.base()
    with torch.no_grad():
        base.unet.head.weight.zero_()
        base.unet.head.bias.fill_(-1.0)
    folder = tmp_path_factory.mktemp("ct") / "air"
    MedSyn(base).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "beats"
    build_higen.model().save(folder)
    return str(folder)


def sides_of(kind, model, against, held_out, **changes):
    settings = AttackSettings(**{**FEW, **changes})
    opened = open_attacked(model, kind, settings)
    return opened, stack_sides(opened, model, against, held_out, settings), settings


# ---- volumes


def test_volumes_whose_losses_are_known(ct_model, tmp_path):
    """-618, -212 and 600 HU are -0.5, 0 and 1 in half of one channel of four, where -1 is said: 1/32, 1/8 and 1/2."""
    train = cts_in(tmp_path / "train", {"a": -618, "b": -212, "c": -618})
    held_out = cts_in(tmp_path / "test", {"d": 600, "e": -212, "f": 600})
    opened, sides, settings = sides_of("volumes", ct_model, train, held_out)
    found = attack_model(opened, sides, settings)
    assert found.member_loss == pytest.approx((1 / 32 + 1 / 8 + 1 / 32) / 3, abs=1e-6)
    assert found.non_member_loss == pytest.approx((1 / 2 + 1 / 8 + 1 / 2) / 3, abs=1e-6)
    assert found.result.auc == pytest.approx(8.5 / 9)  # of 9 pairs one is tied
    assert found.result.auc_interval.method == "delong"
    assert (found.result.members, found.result.non_members, found.classes) == (3, 3, {"any specialty / any type": 3})
    assert found.reading.endswith("read with the defaults of medisyn train: no run is on record")
    assert "grid of 8 x 8 x 8 voxels" in found.reading


def test_kinds_splits_and_patients_of_metadata(ct_model, tmp_path):
    """Chest: a and b, of one patient, against d and e; c has no partner of its kind, x was not trained on."""
    train = cts_in(tmp_path / "train", dict.fromkeys("abcx", -618))
    held_out = cts_in(tmp_path / "test", dict.fromkeys("de", 600))
    chest = {"image_type": "chest CT", "specialty": "radiology"}
    lines = [
        {"file_name": "a/ct.nii.gz", "patient": "p", **chest},
        {"file_name": "b/ct.nii.gz", "patient": "p", "split": "train", **chest},
        {"file_name": "c/ct.nii.gz", "image_type": "abdominal CT"},
        {"file_name": "x/ct.nii.gz", "split": "test", **chest},
    ]
    lines_in(train, lines)
    lines_in(held_out, [{"file_name": f"{name}/ct.nii.gz", "split": "test", **chest} for name in "de"])
    opened, sides, settings = sides_of("volumes", ct_model, train, held_out)
    assert sides.classes == {"radiology / chest CT": 2}
    assert [one.patient for one in sides.members] == ["p", "p"]
    assert sorted(one.patient for one in sides.others) == ["d/ct.nii.gz", "e/ct.nii.gz"]
    found = attack_model(opened, sides, settings)
    assert found.result.auc == 1.0
    assert found.result.auc_interval.method == "percentile bootstrap by patient"


def test_as_many_of_both_sides_drawn_with_the_seed(ct_model, tmp_path):
    train = cts_in(tmp_path / "train", {f"t{n}": -1024 + n for n in range(6)}, masks=())
    held_out = cts_in(tmp_path / "test", {f"h{n}": n for n in range(4)}, masks=())

    def drawn(**changes):
        sides = sides_of("volumes", ct_model, train, held_out, **changes)[1]
        return [[one.patient for one in side] for side in (sides.members, sides.others)]

    members, others = drawn()
    assert (len(set(members)), len(set(others))) == (4, 4)
    assert drawn() == [members, others]
    assert drawn(seed=1) != [members, others]
    assert [len(side) for side in drawn(images=3)] == [3, 3]


def test_the_record_of_the_run_says_how_volumes_are_read(tmp_path):
    """A run that was trained without masks, and with a report for CTs that have none."""
    MedSyn(build_medsyn.base()).save(tmp_path / "run" / "model")
    data = {"masks": "empty", "report": "A CT.", "finer": 2, "series": None}
    runs.write_run(tmp_path / "run", command="train", config={"data": data})
    train = cts_in(tmp_path / "train", {"a": 0, "b": 1}, masks=())
    held_out = cts_in(tmp_path / "test", {"c": 0, "d": 1}, masks=())
    for path in (*train.rglob("report.txt"), *held_out.rglob("report.txt")):
        path.unlink()
    _, sides, _ = sides_of("volumes", str(tmp_path / "run"), train, held_out)
    sample = sides.members[0].read()
    assert sample.caption == "A CT."
    assert set(sample.masks) == set(MASKS)
    assert sides.reading.endswith("as its training run read them")
    runs.write_run(tmp_path / "run", kind="generate", config={"data": data})
    assert trained_by(str(tmp_path / "run")) == {}


def test_a_ct_without_masks_or_report_is_refused(ct_model, tmp_path):
    bare = cts_in(tmp_path / "bare", {"a": 0, "b": 1}, masks=("lobe",))
    silent = cts_in(tmp_path / "silent", {"a": 0, "b": 1}, report="")
    _, sides, _ = sides_of("volumes", ct_model, bare, silent)
    with pytest.raises(CorpusError, match=r"ct-000\d: there is no mask of airway, vessel"):
        sides.members[0].read()
    with pytest.raises(CorpusError, match=r"ct-000\d: it has no report"):
        sides.others[0].read()


# ---- clips


def test_clips_are_scored_as_their_samples(clip_model, tmp_path):
    """The same losses as of Samples that no file has held, and scikit-learn's AUC of them."""
    ours = {f"a{n}": build_higen.beating(1.0 + n) for n in range(3)}
    theirs = {f"b{n}": 255 - build_higen.beating(1.0 + n) for n in range(3)}
    train, held_out = clips_in(tmp_path / "train", ours), clips_in(tmp_path / "test", theirs)
    opened, sides, settings = sides_of("clips", clip_model, train, held_out)
    assert sorted(one.patient for one in sides.members) == [f"a{n}/clip.mkv" for n in range(3)]
    found = attack_model(opened, sides, settings)

    family = build_higen.model(frame_features=load_extractor("medical-encoder"))
    losses = []
    for arrays in (ours, theirs):
        samples = [Sample(name, Clip(array), build_higen.CAPTIONS[0]) for name, array in arrays.items()]
        losses.append(denoising_losses(family, samples.__getitem__, 3, settings, kind="clips"))
    assert found.member_loss == pytest.approx(losses[0].mean(), rel=1e-5)
    assert found.non_member_loss == pytest.approx(losses[1].mean(), rel=1e-5)
    assert found.result.auc == pytest.approx(roc_auc_score([1] * 3 + [0] * 3, -np.concatenate(losses)))
    assert abs(found.member_loss - found.non_member_loss) > 1e-4
    assert "one window of 4 frames" in found.reading
    assert "compared by medical-encoder" in found.reading


def test_the_record_of_the_run_says_which_window_and_encoder(tmp_path):
    build_higen.model().save(tmp_path / "run" / "model")
    config = {"data": {"split": "train", "windows": 3, "seed": 5}, "frame_encoder": "medical-encoder"}
    runs.write_run(tmp_path / "run", command="train", config=config)
    long = {name: build_higen.beating(2.0, frames=12) for name in "ab"}
    for array in long.values():
        array[:, :, 0, 0] = np.arange(12)  # every frame another
    train, held_out = clips_in(tmp_path / "train", long), clips_in(tmp_path / "test", long)
    _, sides, _ = sides_of("clips", str(tmp_path / "run"), train, held_out)
    reader = ClipReader(train, ClipData(windows=3, seed=5), build_higen.FRAMES)
    expected = {key: reader.window(reader(number), 0).item.array_CTHW for number, key in enumerate("ab")}
    starts = {}
    for one in sides.members:
        sample = one.read()
        np.testing.assert_array_equal(sample.item.array_CTHW, expected[sample.key])
        starts[sample.key] = int(sample.item.array_CTHW[0, 0, 0, 0])
    other = ClipReader(train, ClipData(), build_higen.FRAMES)
    assert starts != {
        key: int(other.window(other(number), 0).item.array_CTHW[0, 0, 0, 0]) for number, key in enumerate("ab")
    }
    runs.write_run(tmp_path / "run", command="train", config={**config, "frame_encoder": "medical"})
    with pytest.raises(ConfigError, match="extractor 'medical' is unknown"):
        sides_of("clips", str(tmp_path / "run"), train, held_out)


def test_clips_that_are_refused(clip_model, tmp_path):
    train = clips_in(tmp_path / "train", {name: build_higen.beating() for name in "ab"})
    large = clips_in(tmp_path / "large", {name: build_higen.beating(height=24, width=32) for name in "cd"})
    _, sides, _ = sides_of("clips", clip_model, train, large)
    with pytest.raises(InputError, match=r"[cd]: its frames have 24 x 32 pixels, the model was trained on 16 x 24"):
        sides.others[0].read()
    (large / "c" / "caption.txt").unlink()
    another = (tmp_path / "moved").absolute()
    large.rename(another)
    with pytest.raises(CorpusError, match="c: its clip has no caption"):
        sides_of("clips", clip_model, train, another)
    lines_in(train, [{"file_name": f"{name}/clip.mkv", "image_type": "echo"} for name in "ab"])
    one = clips_in(tmp_path / "one", {name: build_higen.beating() for name in "ef"})
    with pytest.raises(InputError, match="train/ and one/ share 0 clips of one class; at least 2"):
        sides_of("clips", clip_model, train, one)


# ---- within the audit


def test_a_model_of_another_kind_is_refused(ct_model, clip_model, tmp_path):
    settings = AttackSettings(**FEW)
    build.tiny_folder(tmp_path / "sd")
    with pytest.raises(ConfigError, match="attack on CT volumes needs the model that made them; beats makes clips"):
        open_attacked(clip_model, "volumes", settings)
    with pytest.raises(ConfigError, match="attack on clips needs the model that made them; sd makes images"):
        open_attacked(str(tmp_path / "sd"), "clips", settings)
    with pytest.raises(ConfigError, match="attack on images needs the model that made them; air makes CT volumes"):
        open_attacked(ct_model, "images", settings)


def test_held_out_ones_are_needed(tmp_path):
    assert need_held_out("clips", "test") == type(tmp_path)("test")
    with pytest.raises(ConfigError, match=r"compares training volumes with held-out ones: .* with --held-out-folder"):
        need_held_out("volumes", None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


def search_settings(encoder):
    return StackSettings(weights=str(encoder), neighbours=1, edge_neighbours=1, pictures=2)


def test_the_audit_of_clips_attacks_their_model(clip_model, encoder, tmp_path):
    def beats(number):
        return smooth(number, 32)[:16, :24, 0][None, None] // 2 + build_higen.beating() // 2

    train = clips_in(tmp_path / "train", {f"t{n}": beats(n) for n in range(3)})
    held_out = clips_in(tmp_path / "test", {f"h{n}": beats(20 + n) for n in range(3)})
    made = clips_in(tmp_path / "made", {"a": beats(40)})
    found = audit(
        made, train, search_settings(encoder), held_out=held_out, model=clip_model, attack=AttackSettings(**FEW),
        cache=tmp_path / "cache", out=tmp_path / "out",
    )  # fmt: skip
    assert (found.attack.result.members, found.attack.model) == (3, "beats")
    assert found.verdict.rules[1].name == "membership attack"
    assert "membership attack: AUC" in found.summary()
    html = (tmp_path / "out" / "report.html").read_text()
    for text in (
        "Can training clips be told by the model",
        "a training clip is guessed where the loss is low",
        "3 training and 3 held-out clips, drawn at random, since the folders name no kinds of clips,",
        "on none of the held-out clips",
        "one window of 4 frames",
    ):
        assert text in html
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["membership"]["result"]["auc"] == found.attack.result.auc
    with pytest.raises(ConfigError, match="compares training clips with held-out ones"):
        audit(made, train, search_settings(encoder), model=clip_model, out=tmp_path / "none")


def test_the_audit_of_volumes_attacks_their_model(encoder, tmp_path):
    """NIfTI files with a .txt beside each, of a model that was trained without masks."""
    MedSyn(build_medsyn.base()).save(tmp_path / "run" / "model")
    runs.write_run(tmp_path / "run", command="train", config={"data": {"masks": "empty"}})
    folders = {}
    for number, name in enumerate(("train", "test", "made")):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for one in range(2):
            slices = np.stack([smooth(100 * number + 30 * one + d, 16)[..., 0] for d in range(8)])
            volume = nibabel.Nifti1Image(
                slices.transpose(2, 1, 0).astype(np.int16) * 4 - 700, np.diag([20.0, 20.0, 40.0, 1.0])
            )
            nibabel.save(volume, folders[name] / f"{name}{one}.nii.gz")
            (folders[name] / f"{name}{one}.txt").write_text("No effusion.")
    found = audit(
        folders["made"], folders["train"], search_settings(encoder), held_out=folders["test"],
        model=str(tmp_path / "run"), attack=AttackSettings(**FEW), cache=tmp_path / "cache", out=tmp_path / "out",
    )  # fmt: skip
    assert (found.kind, found.attack.result.non_members) == ("volumes", 2)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "2 training and 2 held-out volumes, drawn at random" in html
    assert "with their own reports" in html
    assert "super-resolution was not attacked. They were read as its training run read them" in html

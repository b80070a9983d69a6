"""`medisyn.recipes.audit` of volumes and clips: planted copies are found and withheld, new ones are not."""

import json
from dataclasses import asdict

import nibabel
import numpy as np
import pytest

from build_audit import smooth, tiny_encoder
from medisyn import runs
from medisyn.errors import ConfigError, InputError
from medisyn.evaluation.policy import Policy
from medisyn.recipes.audit import audit
from medisyn.recipes.copy_search import SearchSettings
from medisyn.recipes.stack_search import (
    LEAVE_ONE_OUT,
    StackSettings,
    open_stacks,
    read_window,
    stack_files,
    stacks_of,
    windowed,
    without_stacks,
)

FRAMES, SIDE = 8, 32


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


def settings_of(encoder, **changes):
    return StackSettings(**{"weights": str(encoder), "neighbours": 2, "edge_neighbours": 1, "pictures": 4, **changes})


def clip(number):
    """(T, H, W, 3): every frame is another picture."""
    return np.stack([smooth(100 * number + t, SIDE) for t in range(FRAMES)])


def clips_in(folder, clips, metadata=None):
    folder.mkdir(parents=True)
    for name, frames_THWC in clips.items():
        np.savez(folder / f"{name}.npz", array_CTHW=frames_THWC.transpose(3, 0, 1, 2))
    if metadata is not None:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metadata))
    return folder


def planted(frames_THWC):
    half = clip(77)
    half[: FRAMES // 2] = frames_THWC[: FRAMES // 2]
    noise = np.random.default_rng(0).normal(0, 3, frames_THWC.shape)
    return {
        "copy": frames_THWC,
        "mirrored": np.ascontiguousarray(frames_THWC[:, :, ::-1]),
        "noised": np.clip(frames_THWC + noise, 0, 255).astype(np.uint8),
        "half": half,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory, encoder):
    folder = tmp_path_factory.mktemp("clips")
    clips_in(folder / "train", {f"t{n:02d}": clip(n) for n in range(20)})
    clips_in(folder / "test", {f"h{n:02d}": clip(200 + n) for n in range(20)})
    generated = {f"new{n}": clip(400 + n) for n in range(6)} | planted(clip(7))
    clips_in(folder / "made", generated)
    runs.write_run(folder / "made", kind="generate", model={"id": "m", "digest": "d" * 64})
    return folder


def test_planted_clips_are_withheld_with_the_frame_that_was_copied(place, encoder, tmp_path):
    found = audit(
        place / "made", place / "train", settings_of(encoder), held_out=place / "test", cache=place / "cache",
        out=tmp_path / "out", gate=True, policy=Policy(max_share=0.9),
    )  # fmt: skip
    withheld = {record["key"]: record for record in runs.read_jsonl(tmp_path / "out" / "withheld.jsonl")}
    assert set(withheld) == {"copy.npz", "mirrored.npz", "noised.npz", "half.npz"}
    assert {record["distance"]["training"] for record in withheld.values()} == {"t07.npz"}
    assert withheld["copy.npz"]["distance"] == {"value": 0.0, "training": "t07.npz", "flip": "none"}
    assert withheld["mirrored.npz"]["distance"] == {"value": 0.0, "training": "t07.npz", "flip": "horizontal"}
    assert 0 < withheld["noised.npz"]["distance"]["value"] < 0.05
    assert withheld["half.npz"]["distance"]["value"] == 0.0  # half of the frames are more than a quarter
    assert (tmp_path / "out" / "withheld" / "copy.npz").read_bytes() == (place / "made" / "copy.npz").read_bytes()
    assert {path.name for path in (tmp_path / "out" / "released").glob("*.npz")} == {f"new{n}.npz" for n in range(6)}
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["kind"] == "clips"
    assert result["model"] == {"id": "m", "digest": "d" * 64}
    assert result["corpus"].startswith("files-")
    assert result["strata"][-1]["held_out"]["n"] == 20
    run = runs.read_run(tmp_path / "out")
    assert (run["model"], run["corpus"]) == (result["model"], result["corpus"])
    html = (tmp_path / "out" / "report.html").read_text()
    for text in (
        "Are generated clips copies of training clips?",
        "Is any clip a copy of a training clip?",
        "MediSyn v2 tested single images only (section 4.3.4)",
        "how clips are compared is ours",
        "WITHHELD.",
    ):
        assert text in html
    assert "split 'test'" not in html  # the held-out clips are a folder of their own
    assert len(runs.read_jsonl(tmp_path / "out" / "clips.jsonl")) == 10
    assert "nearest training clip, generated: 3 of 10" in found.summary()  # the nearest alone, not mirrored


def test_without_held_out_clips_each_training_clip_meets_other_patients(tmp_path, encoder):
    """The two clips of patient p are alike; left in, the null distribution would hold a distance of 0."""
    clips = {f"t{n}": clip(n) for n in range(4)} | {"again": clip(2)}
    lines = [{"file_name": "t2.npz", "patient": "p"}, {"file_name": "again.npz", "patient": "p"}]
    clips_in(tmp_path / "train", clips, lines)
    search = open_stacks("clips", tmp_path / "train", None, settings_of(encoder), tmp_path / "cache")
    assert search.null == LEAVE_ONE_OUT
    assert len(search.held_out) == 5
    null = search.held_out_closeness()
    assert all(close.distance.value > 0.02 for close in null)
    assert search.closeness(search.train[:1], "")[0].distance.value == 0  # as a generated one it is a copy


def test_the_column_split_names_the_held_out_clips(tmp_path, encoder):
    lines = [{"file_name": f"{n}.npz", "split": "test" if n > 2 else "train"} for n in range(5)]
    clips_in(tmp_path / "c", {str(n): clip(n) for n in range(5)}, lines)
    search = open_stacks("clips", tmp_path / "c", None, settings_of(encoder), tmp_path / "cache")
    assert [item.key for item in search.train] == ["0.npz", "1.npz", "2.npz"]
    assert [item.key for item in search.held_out] == ["3.npz", "4.npz"]
    assert search.null == "split 'test'"
    lines = [{"file_name": "0.npz", "patient": "p"}, {"file_name": "1.npz", "patient": "p", "split": "test"}]
    clips_in(tmp_path / "shared", {str(n): clip(n) for n in range(2)}, lines)
    with pytest.raises(InputError, match="1 of 1 held-out clips are training clips, or of patients with training"):
        open_stacks("clips", tmp_path / "shared", None, settings_of(encoder), tmp_path / "cache")
    lines = [{"file_name": "0.npz", "split": "test"}]
    clips_in(tmp_path / "none", {"0": clip(0)}, lines)
    with pytest.raises(InputError, match="none/ has no training clips"):
        open_stacks("clips", tmp_path / "none", None, settings_of(encoder), tmp_path / "cache")


def test_kinds_of_clips_are_searched_apart(tmp_path, encoder):
    kinds = ["echo", "echo", "endoscopy", "endoscopy"]
    lines = [{"file_name": f"{n}.npz", "image_type": kind} for n, kind in enumerate(kinds)]
    clips_in(tmp_path / "c", {str(n): clip(n) for n in range(4)}, lines)
    search = open_stacks("clips", tmp_path / "c", None, settings_of(encoder), tmp_path / "cache")
    made = clips_in(tmp_path / "made", {"a": clip(0)}, [{"file_name": "a.npz", "image_type": "endoscopy"}])
    near = search.closeness(stacks_of("clips", made), "")[0]
    assert search.train[near.distance.training].key in ("2.npz", "3.npz")
    assert near.distance.value > 0.02
    unknown = clips_in(tmp_path / "unknown", {"a": clip(0)})
    near = search.closeness(stacks_of("clips", unknown), "")[0]
    assert (search.train[near.distance.training].key, near.distance.value, near.paper) == ("0.npz", 0.0, None)


# ---- volumes


def volume(number, depth=10, size=24):
    slices = np.stack([smooth(500 + 50 * number + d, size)[..., 0] for d in range(depth)])
    return slices.astype(np.int16) * 4 - 700


def volumes_in(folder, volumes):
    """NIfTI files in HU; axes as nibabel has them (x, y, z)."""
    folder.mkdir(parents=True)
    for name, array_DHW in volumes.items():
        nibabel.save(nibabel.Nifti1Image(array_DHW.transpose(2, 1, 0), np.eye(4)), folder / f"{name}.nii.gz")
    return folder


def test_a_copied_volume_is_found_and_its_masks_are_no_volumes(tmp_path, encoder):
    train = volumes_in(tmp_path / "train", {f"t{n}": volume(n) for n in range(5)})
    made = volumes_in(
        tmp_path / "made", {"a": volume(3) + 3, "b": volume(9), "a-lobe": np.zeros((10, 24, 24), np.int16)}
    )
    line = {"file_name": "a.nii.gz", "model": "medsyn", "model_digest": "e" * 64}
    (made / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    found = audit(made, train, settings_of(encoder), cache=tmp_path / "cache", out=tmp_path / "out")
    assert [image.key for image in found.images] == ["a.nii.gz", "b.nii.gz"]
    copy, new = found.generated
    assert found.kind == "volumes"
    assert copy.distance.training == 3
    assert copy.distance.value < 0.005  # 3 HU of 1,624
    assert new.distance.value > 0.02
    assert found.model == {"id": "medsyn", "digest": "e" * 64}
    html = (tmp_path / "out" / "report.html").read_text()
    assert "HU -1024 to 600 became grey levels 0 to 255" in html
    assert "each training one stands for a held-out one" in html
    again = audit(made, train, settings_of(encoder), cache=tmp_path / "cache", out=tmp_path / "out")
    assert [asdict(close) for close in again.generated] == [asdict(close) for close in found.generated]


def test_masks_of_a_training_corpus_are_neither_volumes_nor_clips(tmp_path):
    """Laid out as for training: what lies beside ct.nii.gz, NAME_lobe.nii.gz beside NAME.nii.gz, and masks.npz."""
    volumes_in(tmp_path / "v" / "a", dict.fromkeys(("ct", "lobe", "heart"), volume(0)))
    volumes_in(tmp_path / "v" / "b", dict.fromkeys(("x", "x_lobe", "x-vessel", "y_lobe"), volume(1)))
    kept = ["a/ct.nii.gz", "b/x.nii.gz", "b/y_lobe.nii.gz"]
    assert stack_files("volumes", tmp_path / "v") == kept
    assert [item.key for item in stacks_of("volumes", tmp_path / "v")] == kept
    clips_in(tmp_path / "c" / "h", {"clip": clip(0)})
    np.savez(tmp_path / "c" / "h" / "masks.npz", labels_THW=np.zeros((4, 8, 8), np.uint8))
    assert stack_files("clips", tmp_path / "c") == ["h/clip.npz"]
    assert [item.key for item in stacks_of("clips", tmp_path / "c")] == ["h/clip.npz"]


def test_a_damaged_cache_of_pictures_is_named(tmp_path, encoder):
    folder = clips_in(tmp_path / "c", {"0": clip(0), "1": clip(1)})
    open_stacks("clips", folder, None, settings_of(encoder), tmp_path / "cache")
    for file in (tmp_path / "cache" / "pictures").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"0\.npz: its pictures in the cache are damaged\. Delete pictures/"):
        open_stacks("clips", folder, None, settings_of(encoder), tmp_path / "cache")


def test_windows():
    hu = np.array([-2000.0, -1000.0, -500.0, 0.0, 3000.0])
    assert windowed(hu, -1000, 0).tolist() == [0, 0, 128, 255, 255]  # 127.5 to even
    assert read_window("-1000, 200") == (-1000.0, 200.0)
    with pytest.raises(ConfigError, match="window 'lung' is not two numbers of HU"):
        read_window("lung")
    with pytest.raises(ConfigError, match=r"window from low to high, got 12, 0\.25 and 5 to 5"):
        StackSettings(window=(5, 5))


def test_what_is_refused(place, encoder, tmp_path):
    flat = clips_in(tmp_path / "flat", {"black": np.zeros((4, SIDE, SIDE, 3), np.uint8)})
    with pytest.raises(InputError, match=r"black\.npz: every picture of it is flat"):
        audit(flat, place / "train", settings_of(encoder), cache=place / "cache", out=tmp_path / "out")
    with pytest.raises(InputError, match="there is no folder gone/ of clips"):
        audit(place / "made", tmp_path / "gone", settings_of(encoder), out=tmp_path / "out", cache=place / "cache")
    with pytest.raises(ConfigError, match="window: only volumes in HU have one, these are clips"):
        audit(place / "made", place / "train", settings_of(encoder, window=(-1000, 0)), out=tmp_path / "out")
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match="pictures: only clips and volumes have this, these are images"):
        audit(tmp_path / "images", place / "train", settings_of(encoder), out=tmp_path / "out")
    assert without_stacks(StackSettings(seed=3)) == SearchSettings(seed=3)
    with pytest.raises(ConfigError, match="a folder of held-out items is for volumes and clips"):
        audit(tmp_path / "images", place / "train", SearchSettings(), held_out=place / "test", out=tmp_path / "out")

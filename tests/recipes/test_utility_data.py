"""Leakage, classes, volumes and designs: what is refused, left out or scaled, and that it is said."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from build_utility import TINY_OVERRIDES, build_corpus, build_generated, build_volumes
from medisyn import runs
from medisyn.corpus.loader import Corpus
from medisyn.errors import ConfigError, InputError, RangeError, ReadError
from medisyn.recipes.utility import prepare, utility
from medisyn.recipes.utility_data import load_cases, picture_at, read_volume, volume_at, volume_cases
from medisyn.recipes.utility_designs import UtilitySettings, design, plan_arms

COUNTS = {"train": 10, "validation": 4, "test": 6}
SETTINGS = dataclasses.replace(design("medisyn-v2"), network=10, width=4, size=16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build_generated(tmp_path_factory.mktemp("made") / "a", 12)


def trial_of(corpus, made, settings=SETTINGS, trained_on=None):
    return prepare(load_cases(corpus, made), settings, trained_on)


# ---- leakage


def test_a_patient_on_both_sides_is_refused(tmp_path, made):
    def shared(row):
        return dataclasses.replace(row, patient="p-test-red-0") if row.key == "train-red-03" else row

    corpus = build_corpus(tmp_path / "corpus", COUNTS, change=shared)
    with pytest.raises(InputError, match="2 of 20 held-out images share a patient with the classifiers' training data"):
        trial_of(corpus, made)


def test_validation_patients_are_kept_out_of_the_test_set(tmp_path, made):
    def shared(row):
        return dataclasses.replace(row, patient="p-test-red-0") if row.key == "validation-red-00" else row

    corpus = build_corpus(tmp_path / "corpus", COUNTS, change=shared)
    with pytest.raises(InputError, match="2 of 12 held-out images share a patient with the validation images"):
        trial_of(corpus, made)


def test_a_generator_that_saw_the_test_patients_is_refused(tmp_path, made):
    corpus = build_corpus(tmp_path / "corpus", COUNTS)
    greedy = build_corpus(
        tmp_path / "greedy", COUNTS,
        change=lambda row: dataclasses.replace(row, split="train") if row.split == "test" else row,
    )  # fmt: skip
    with pytest.raises(InputError, match="12 of 20 held-out images share a patient with the generator's training data"):
        trial_of(corpus, made, trained_on=greedy)


def test_the_run_of_the_generator_says_what_it_saw(tmp_path, made):
    corpus = build_corpus(tmp_path / "corpus", COUNTS)
    fingerprint = Corpus(corpus).fingerprint
    runs.write_run(tmp_path / "run", corpus=fingerprint, config={"split": "train"})
    trial = trial_of(corpus, made, trained_on=tmp_path / "run")
    assert "split 'train' of the real data" in trial.leakage.text
    assert trial.warnings == ()
    runs.write_run(tmp_path / "run", corpus=fingerprint, config={"split": "test"})
    with pytest.raises(InputError, match="share a patient with the generator's training data, split 'test'"):
        trial_of(corpus, made, trained_on=tmp_path / "run")
    runs.write_run(tmp_path / "run", corpus="0123456789abcdef")
    with pytest.raises(InputError, match="cannot be told from the run"):
        trial_of(corpus, made, trained_on=tmp_path / "run")
    with pytest.raises(InputError, match="--trained-on nothing: neither a corpus"):
        trial_of(corpus, made, trained_on=tmp_path / "nothing")


def test_another_corpus_without_common_patients_is_taken_with_a_warning(tmp_path, made):
    corpus = build_corpus(tmp_path / "corpus", COUNTS)

    def renamed(row):
        return dataclasses.replace(row, patient=f"other-{row.patient}", sha256=row.sha256[::-1], phash="")

    other = build_corpus(tmp_path / "other", COUNTS, change=renamed)
    trial = trial_of(corpus, made, trained_on=other)
    assert any("the same pseudonym key" in warning for warning in trial.warnings)


def test_a_test_image_among_the_synthetic_ones_is_refused(tmp_path):
    corpus = Corpus(build_corpus(tmp_path / "corpus", COUNTS))
    made = build_generated(tmp_path / "a", 12)
    (made / "003.png").write_bytes(corpus.read_png(corpus.rows("test")[0]))
    with pytest.raises(InputError, match=r"1 of 20 held-out images share a file \(sha256\) with the synthetic folder"):
        trial_of(tmp_path / "corpus", made)


def test_a_held_out_image_that_looks_like_a_training_image_is_left_out(tmp_path, made):
    twins = {"train-red-00": "f" * 16, "test-red-00": "f" * 16, "train-red-01": "0" * 16, "test-red-01": "0" * 16}
    corpus = build_corpus(
        tmp_path / "corpus", COUNTS, change=lambda row: dataclasses.replace(row, phash=twins.get(row.key, row.phash))
    )
    trial = trial_of(corpus, made)
    assert trial.leakage.left_out == {"test-red-00"}  # 0000000000000000 stands for unknown
    assert "test-red-00" not in {case.image.key for case in trial.parts.test}
    assert len(trial.parts.test) == 11
    assert "1 held-out images with the perceptual hash of a training image were left out" in trial.leakage.text


# ---- classes and parts


def test_classes_with_too_few_images_are_left_out_with_the_reason(tmp_path, made):
    def rare(row):
        return row if row.key != "train-green-00" else dataclasses.replace(row, labels=("purple",))

    kinds = (("red",), ("blue",), ("green",))
    corpus = build_corpus(tmp_path / "corpus", COUNTS, kinds, change=rare)
    trial = trial_of(corpus, made)
    assert dict(trial.task.left_out) == {
        "slide/green": "no synthetic image",
        "slide/purple": "1 training images, 8 are needed",
    }
    one_patient = build_corpus(
        tmp_path / "one", COUNTS,
        change=lambda row: dataclasses.replace(row, patient="p1") if row.key.startswith("test-red") else row,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"leaves 1 class.*6 test images of 1 patients, 5 of 2 are needed"):
        trial_of(one_patient, made)


def test_a_test_set_of_one_class_is_refused(tmp_path, made):
    corpus = build_corpus(tmp_path / "corpus", COUNTS, (("red",),))
    with pytest.raises(InputError, match=r"the test set leaves 1 class\(es\) to tell apart, 2 are needed"):
        trial_of(corpus, made)
    both = build_corpus(tmp_path / "both", COUNTS, (("red",), ("blue", "red")))
    both_made = build_generated(tmp_path / "b", 12, (("red",), ("blue", "red")))
    with pytest.raises(InputError, match="every test image has 'red'"):
        trial_of(both, both_made, dataclasses.replace(SETTINGS, task="multi-label"))


def test_negatives_of_a_single_label(tmp_path):
    corpus = build_corpus(tmp_path / "corpus", COUNTS)
    made = build_generated(tmp_path / "a", 12)
    settings = dataclasses.replace(SETTINGS, task="multi-label", classes=("red",), negatives=True)
    trial = trial_of(corpus, made, settings)
    assert trial.task.targets(trial.parts.test).sum() == 6
    assert len(trial.parts.test) == 12


def test_unknown_classes_and_types_are_named(tmp_path, made):
    corpus = build_corpus(tmp_path / "corpus", COUNTS)
    with pytest.raises(InputError, match="class 'slide/pink' has no real training image; there are: slide/blue"):
        trial_of(corpus, made, dataclasses.replace(SETTINGS, classes=("slide/pink",)))
    with pytest.raises(InputError, match="no real image is of the type 'ultrasound'; there are: slide"):
        trial_of(corpus, made, dataclasses.replace(SETTINGS, image_type="ultrasound"))


def test_data_without_a_split_is_refused_or_said(tmp_path, made):
    with pytest.raises(InputError, match="20 training and 0 test images; both are needed"):
        trial_of(build_corpus(tmp_path / "a", {"train": 10}), made)
    trial = trial_of(build_corpus(tmp_path / "b", {"train": 10, "test": 6}), made)
    assert any("no validation split" in warning for warning in trial.warnings)


def test_an_arm_without_images_is_refused():
    with pytest.raises(InputError, match="30 real training images and 0 synthetic images"):
        plan_arms(design("tstr"), 30, 0)


def test_synthetic_images_of_another_size_are_resized_and_said(tmp_path):
    corpus = build_corpus(tmp_path / "corpus", COUNTS)
    made = build_generated(tmp_path / "a", 10, size=48)
    found = utility(corpus, made, "tstr", [*TINY_OVERRIDES, "seeds=1"], out=tmp_path / "out")
    assert any("Real images are 32x32, synthetic ones 48x48" in warning for warning in found.warnings)
    with pytest.raises(InputError, match="the weight file nothing.pth does not exist"):  # noqa: RUF043
        utility(corpus, made, "tstr", TINY_OVERRIDES, weights=tmp_path / "nothing.pth", out=tmp_path / "other")


# ---- designs


def arms_of(settings, real, synthetic):
    return [(arm.real, arm.synthetic, arm.pretrain) for arm in plan_arms(settings, real, synthetic).arms]


def test_designs_with_enough_images_are_the_papers():
    assert arms_of(design("medisyn-v2"), 9000, 1500) == [(2000, 0, 0), (1000, 0, 0), (1000, 1000, 0)]
    assert arms_of(design("budget"), 200, 2000) == [
        (200, 0, 0), (0, 200, 0), (0, 2000, 0), (200, 200, 0), (200, 2000, 0),
    ]  # fmt: skip
    assert arms_of(design("medsyn"), 3630, 200) == [(3630, 0, 0), (3630, 200, 0)]
    assert design("medisyn-v2").num_steps(2000) == 938  # 15 x 2000 / 32 = 937.5
    assert design("budget").num_steps(200) == 6250


def test_designs_shrink_by_their_rule():
    assert arms_of(design("medisyn-v2"), 900, 1500) == [(900, 0, 0), (450, 0, 0), (450, 450, 0)]
    assert arms_of(design("medisyn-v2"), 9000, 300) == [(600, 0, 0), (300, 0, 0), (300, 300, 0)]
    assert arms_of(design("budget"), 100, 500) == [(100, 0, 0), (0, 50, 0), (0, 500, 0), (100, 50, 0), (100, 500, 0)]
    assert arms_of(design("tstr"), 900, 300) == [(300, 0, 0), (0, 300, 0)]
    assert arms_of(design("pretrain"), 900, 300) == [(900, 0, 0), (900, 300, 0), (900, 0, 300)]
    assert "usable: 900 real and 300 synthetic" in plan_arms(design("tstr"), 900, 300).scaling


def test_bad_designs_and_values_are_named():
    with pytest.raises(ConfigError, match=r"design 'bugdet' is unknown.*Did you mean 'budget'"):
        design("bugdet")
    with pytest.raises(ConfigError, match="table row '200': write real"):
        plan_arms(dataclasses.replace(design("budget"), table=("200",)), 10, 10)
    with pytest.raises(ConfigError, match="needs a table"):
        plan_arms(dataclasses.replace(design("budget"), table=()), 10, 10)
    with pytest.raises(ConfigError, match="task must be multi-class or multi-label, got 'binary'"):
        UtilitySettings(design="tstr", task="binary")
    with pytest.raises(ConfigError, match="seeds must be at least 1, got 0"):
        UtilitySettings(design="tstr", seeds=0)
    with pytest.raises(ConfigError, match="folds 0 or at least 2"):
        UtilitySettings(design="tstr", folds=1)
    with pytest.raises(ConfigError, match="chosen with --design budget"):
        utility("a", "b", "tstr", ["design=budget"])


# ---- volumes and sizes


def test_volumes_are_windowed_turned_and_resized(tmp_path):
    import nibabel

    hu = np.linspace(-1200, 800, 4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    np.save(tmp_path / "a.npy", hu)
    got = read_volume(tmp_path / "a.npy", "hu")
    np.testing.assert_allclose(got, np.clip((hu + 1024) / 812 - 1, -1, 1), atol=1e-6)
    flipped = nibabel.Nifti1Image(hu.transpose(2, 1, 0)[::-1], np.diag([-1.0, 1, 1, 1]))  # the same voxels, x reversed
    nibabel.save(flipped, tmp_path / "b.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii.gz", "hu"), got, atol=1e-6)
    blocks = np.arange(8, dtype=np.float32).reshape(2, 2, 2).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    np.testing.assert_array_equal(volume_at(blocks, 2), np.arange(8).reshape(2, 2, 2))
    assert volume_at(np.ones((2, 3, 9), dtype=np.float32), 4).shape == (4, 4, 4)
    assert picture_at(np.full((8, 4, 3), 9, dtype=np.uint8), 4).tolist() == np.full((4, 4, 3), 9).tolist()


def test_volumes_that_are_refused(tmp_path):
    np.save(tmp_path / "unit.npy", np.zeros((2, 2, 2)))
    with pytest.raises(RangeError, match="so they are not HU; set unit to symmetric"):
        read_volume(tmp_path / "unit.npy", "hu")
    assert read_volume(tmp_path / "unit.npy", "symmetric").max() == 0
    with pytest.raises(RangeError, match="unit 'mm' is unknown"):
        read_volume(tmp_path / "unit.npy", "mm")
    np.save(tmp_path / "hu.npy", np.full((2, 2, 2), 40.0))
    with pytest.raises(RangeError, match="unit symmetric is -1 to 1"):
        read_volume(tmp_path / "hu.npy", "symmetric")
    np.save(tmp_path / "flat.npy", np.zeros((2, 2)))
    with pytest.raises(ReadError, match="a volume has the axes D, H, W"):
        read_volume(tmp_path / "flat.npy", "hu")
    for name in ("bad.npy", "bad.nii.gz"):
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(ReadError, match=f"{name}: not a readable volume"):
            read_volume(tmp_path / name, "hu")


def test_folders_of_volumes_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="neither a corpus"):
        volume_cases(tmp_path, "")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "../a.npy"}) + "\n")
    with pytest.raises(InputError, match="line 1: file_name names no volume"):
        volume_cases(tmp_path, "")


def test_training_volumes_of_the_generator_are_refused_and_splits_kept_out(tmp_path):
    real = build_volumes(tmp_path / "real", 12, splits=("train", "train", "test", "test"))
    made = build_volumes(tmp_path / "made", 4, patients="s", seed=1)
    settings = dataclasses.replace(
        design("medsyn"), folds=2, size=8, network=10, width=2, min_train=2, min_test=2, classes=("effusion",)
    )
    trial = prepare(load_cases(real, made), settings, None)
    assert {case.split for case in trial.parts.test} == {"test"}  # what the generator may have seen is no test data
    seen = build_volumes(tmp_path / "seen", 4, patients="v", seed=2)
    with pytest.raises(InputError, match="share a patient with the generator's training data, 4 volumes"):
        prepare(load_cases(real, made), settings, seen)

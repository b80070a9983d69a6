"""The check of a stage: its statistics, its verdict, and that it holds one batch of pixels at a time."""

import gc
import weakref

import numpy as np
import pytest

from medisyn.errors import InputError
from medisyn.evaluation.bootstrap import Interval
from medisyn.evaluation.ssim import HALF_GREY_LEVEL_DB, ssim
from medisyn.evaluation.stages import check_stage, verdict_of


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 18, 3), dtype=np.uint8)


def readers(count):
    return [lambda seed=seed: image(seed) for seed in range(count)]


def darker(batch):
    return [(picture * 0.8).astype(np.uint8) for picture in batch]


def test_a_stage_that_changes_nothing():
    found = check_stage("identity", lambda batch: batch, readers(5), resamples=10)
    np.testing.assert_allclose([found.ssim.mean, found.ssim.median, found.ssim.low], 1.0, rtol=1e-12)
    assert found.ssim.sd < 1e-12
    assert found.psnr_db.mean == HALF_GREY_LEVEL_DB  # capped, not infinite
    assert (found.verdict, found.n) == ("keep", 5)


def test_statistics_are_those_of_the_values_per_image():
    found = check_stage("darker", darker, readers(7), batch_size=3, resamples=50)
    expected = []
    for seed in range(7):
        pair = [part.transpose(2, 0, 1)[None] for part in (image(seed), darker([image(seed)])[0])]
        expected.append(ssim(*pair, data_range=255)[0])
    np.testing.assert_allclose(found.ssim_N, expected, rtol=1e-12)
    np.testing.assert_allclose(found.ssim.sd, np.std(expected, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(found.ssim.median, np.median(expected), rtol=1e-12)
    np.testing.assert_allclose(found.ssim.range, max(expected) - min(expected), rtol=1e-9)
    assert found.ssim.interval.low < found.ssim.mean < found.ssim.interval.high
    # values are scaled by 0.8 and cut to whole numbers: an error of 0.2 x, about 0.2 * sqrt(E[x^2]) = 29.4
    np.testing.assert_allclose(found.psnr_db.mean, 20 * np.log10(255 / 29.7), rtol=0.02)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.84, 0.9, "keep"), (0.7, 0.83, "fine-tune"), (0.8, 0.9, "undecided")]
)
def test_the_verdict_needs_the_whole_interval(low, high, verdict):
    assert verdict_of(Interval(low, high, 0.95, "")) == verdict


def test_noise_instead_of_the_image_is_to_be_trained():
    found = check_stage("noise", lambda batch: [image(99) for _ in batch], readers(6), resamples=20)
    assert found.verdict == "fine-tune"
    assert found.ssim.mean < 0.1


def test_patients_widen_the_interval():
    def rebuild(batch):
        return [picture if picture[0, 0, 0] < 128 else image(99) for picture in batch]

    repeated = [lambda seed=seed // 6: image(seed) for seed in range(36)]
    patients = [str(number // 6) for number in range(36)]
    by_image = check_stage("x", rebuild, repeated, resamples=100).ssim.interval
    by_patient = check_stage("x", rebuild, repeated, resamples=100, patients=patients).ssim.interval
    assert by_patient.high - by_patient.low > 1.5 * (by_image.high - by_image.low)


def test_pixels_are_held_for_one_batch():
    alive, most = set(), 0

    def read(seed):
        picture = image(seed)
        alive.add(seed)
        weakref.finalize(picture, alive.discard, seed)
        return picture

    def rebuild(batch):
        nonlocal most
        gc.collect()
        most = max(most, len(alive))
        return batch

    check_stage("x", rebuild, [lambda seed=seed: read(seed) for seed in range(40)], batch_size=4, resamples=2)
    assert most <= 8  # the batch, and at most the one before


def test_refusals():
    with pytest.raises(InputError, match="stage x: a spread needs at least 2 images, got 1"):
        check_stage("x", darker, readers(1))
    with pytest.raises(InputError, match=r"for \(16, 18, 3\) uint8 it gave \(16, 16, 3\) uint8"):
        check_stage("x", lambda batch: [picture[:, :16] for picture in batch], readers(2))
    with pytest.raises(InputError, match="it gave nothing"):
        check_stage("x", lambda batch: [], readers(2))
    with pytest.raises(InputError, match=r"gave .* float64"):
        check_stage("x", lambda batch: [picture / 1.0 for picture in batch], readers(2))


def test_a_clip_counts_once_with_the_mean_over_its_frames():
    """A clip of five frames: as the mean of five images."""
    clips = [lambda seed=seed: np.stack([image(10 * seed + frame) for frame in range(5)]) for seed in range(3)]
    by_clip = check_stage("x", lambda batch: [darker([clip])[0] for clip in batch], clips, resamples=10)
    frames = [lambda seed=seed: image(seed) for start in range(3) for seed in range(10 * start, 10 * start + 5)]
    by_frame = check_stage("x", darker, frames, resamples=10)
    np.testing.assert_allclose(by_clip.ssim_N, np.reshape(by_frame.ssim_N, (3, 5)).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(by_clip.psnr_db.mean, by_frame.psnr_db.mean, rtol=1e-12)
    assert by_clip.n == 3

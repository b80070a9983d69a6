"""The result of an evaluation: what it says of known sets, what stands beside each number, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medisyn.errors import InputError, RangeError
from medisyn.evaluation.evaluate import FeatureSet, Settings, compare, evaluate, result_from_dict
from medisyn.evaluation.frechet import frechet_distance

QUICK = Settings(resamples=20)


def features(n, seed=0, shift=0.0, extractor="e:1", preprocessing="p", patients=None):
    values = np.random.default_rng(seed).standard_normal((n, 6)) + shift
    return FeatureSet(values.astype(np.float32), extractor, preprocessing, patients)


@pytest.fixture(scope="module")
def result():
    return evaluate(features(60, 1, shift=1.0), features(50, 2), features(80, 3), QUICK)


def test_every_measure_has_its_context(result):
    names = [measure.name for measure in result.measures]
    assert names == ["frechet", "kid", "mmd", "precision", "recall", "density", "coverage"]
    assert names == [measure.name for measure in result.baseline]
    for measure in (*result.measures, *result.baseline):
        assert (measure.n_first, measure.n_real, measure.dim) == (50, 50, 6)
        assert (measure.extractor, measure.preprocessing) == ("e:1", "p")
        assert measure.interval.low <= measure.value <= measure.interval.high, measure.name
        assert measure.note


def test_the_shifted_set_is_further_than_the_real_baseline(result):
    # |shift|^2 = 6 is added to a finite-sample floor that the baseline shows
    assert result.measure("frechet").value > 4 + result.baseline[0].value
    assert result.measure("kid").value > result.baseline[1].value + 0.1
    assert result.measure("mmd").value > result.baseline[2].value + 0.1
    assert result.measure("coverage").value < result.baseline[-1].value
    assert "lowered from 1000" in result.measure("kid").note


def test_the_distance_is_that_of_the_drawn_subsets():
    generated, real = features(40, 1), features(40, 2)
    found = evaluate(generated, real, features(40, 3), QUICK)
    expected = frechet_distance(generated.features_ND, real.features_ND)  # nothing to draw: all sets have one size
    np.testing.assert_allclose(found.measure("frechet").value, expected, rtol=1e-12)


def test_it_repeats_with_its_seed():
    sets = features(30, 1), features(25, 2), features(25, 3)
    assert evaluate(*sets, QUICK) == evaluate(*sets, QUICK)
    assert evaluate(*sets, QUICK) != evaluate(*sets, replace(QUICK, seed=1))


def test_patients_are_resampled_whole():
    values = np.repeat(np.random.default_rng(0).standard_normal((10, 6)), 6, axis=0)
    values += 0.01 * np.random.default_rng(1).standard_normal(values.shape)
    patients = tuple(f"p{i // 6}" for i in range(60))
    sets = features(60, 4), features(60, 5)
    by_patient = evaluate(sets[0], FeatureSet(values, "e:1", "p", patients), sets[1], QUICK).measure("frechet").interval
    by_image = evaluate(sets[0], FeatureSet(values, "e:1", "p"), sets[1], QUICK).measure("frechet").interval
    assert by_patient.high - by_patient.low > by_image.high - by_image.low


def test_json_round_trip(result):
    assert result_from_dict(json.loads(json.dumps(result.as_dict()))) == result


def test_two_runs_side_by_side(result):
    other = evaluate(features(50, 9, shift=0.5), features(50, 2), features(80, 3), QUICK)
    rows = compare(result, other)
    assert [row["name"] for row in rows] == [measure.name for measure in result.measures]
    assert rows[0]["difference"] == other.measures[0].value - result.measures[0].value < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_first": 49}, "n_first of frechet is 50 in the first and 49"),
        ({"n_real": 7}, "n_real of frechet"),
        ({"extractor": "e:2"}, "extractor of frechet is 'e:1' in the first and 'e:2'"),
        ({"preprocessing": "q"}, "preprocessing of frechet"),
        ({"dim": 7}, "dim of frechet"),
    ],
)
def test_runs_that_do_not_compare_are_refused(result, change, message):
    other = replace(result, measures=(replace(result.measures[0], **change), *result.measures[1:]))
    with pytest.raises(InputError, match=message):
        compare(result, other)


def test_other_settings_or_measures_are_refused(result):
    changes = ({"nearest_k": 3}, {"kid_subset_size": 10}, {"kid_subsets": 7}, {"mmd_alpha": 0.2}, {"seed": 4})
    for change in changes:
        with pytest.raises(InputError, match=f"settings differ in {next(iter(change))}"):
            compare(result, replace(result, settings=replace(QUICK, **change)))
    with pytest.raises(InputError, match="different measures"):
        compare(result, replace(result, measures=result.measures[:2]))


def test_runs_against_other_real_images_are_refused(result):
    """Same sizes, extractor and settings; only the held-out images are others."""
    elsewhere = evaluate(features(60, 1, shift=1.0), features(50, 7), features(80, 3), QUICK)
    with pytest.raises(InputError, match="real images were not the same"):
        compare(result, elsewhere)


def test_runs_with_two_kernels_are_refused(result):
    other = tuple(replace(m, kernel_alpha=0.5) if m.name == "mmd" else m for m in result.measures)
    with pytest.raises(InputError, match=r"the kernel of mmd has alpha 0\.\d+ in the first and 0\.5 in the second"):
        compare(result, replace(result, measures=other))


def test_the_kernel_is_that_of_the_real_images_and_is_on_record(result):
    other = evaluate(features(60, 1, shift=9.0), features(50, 2), features(80, 3), QUICK)
    alphas = {m.kernel_alpha for r in (result, other) for m in (*r.measures, *r.baseline) if m.name == "mmd"}
    assert len(alphas) == 1  # whatever was generated
    assert f"alpha = {alphas.pop():.6g}" in result.measure("mmd").note
    given = evaluate(features(60, 1), features(50, 2), features(80, 3), replace(QUICK, mmd_alpha=0.25))
    assert given.measure("mmd").kernel_alpha == 0.25
    assert "(given)" in given.measure("mmd").note


def test_unit_features_get_cmmd():
    def unit(n, seed):
        part = features(n, seed)
        return replace(part, features_ND=part.features_ND / np.linalg.norm(part.features_ND, axis=1, keepdims=True))

    found = evaluate(unit(20, 1), unit(20, 2), unit(20, 3), QUICK)
    assert found.measure("cmmd").value >= 0
    assert "sigma 10" in found.measure("cmmd").note


def test_the_extrapolated_distance_is_labelled():
    found = evaluate(features(90, 1), features(90, 2), features(90, 3), replace(QUICK, resamples=2))
    measure = found.measure("frechet_extrapolated")
    assert "extrapolated to infinite n from 22 to 90 images" in measure.note
    assert "unreliable below 2,000 images" in measure.note
    assert measure.value < found.measure("frechet").value
    assert measure.interval.method == "least squares"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 20, 20), r"generated set: precision and recall with 5 nearest neighbours need at least 6 images, got 5"),
        ((20, 4, 20), "held-out real set: .*got 4"),
        ((20, 20, 1), r"real baseline \(training\) set: .*got 1"),
    ],
)
def test_the_set_that_is_too_small_is_named(sizes, message):
    with pytest.raises(InputError, match=message):
        evaluate(*(features(n, seed) for seed, n in enumerate(sizes)), QUICK)


def test_sets_of_two_extractors_are_refused():
    with pytest.raises(InputError, match="different extractor: 'e:2' and 'e:1'"):
        evaluate(features(20, extractor="e:2"), features(20), features(20), QUICK)
    with pytest.raises(InputError, match="different preprocessing: 'q' and 'p'"):
        evaluate(features(20), features(20), features(20, preprocessing="q"), QUICK)


def test_feature_sets_are_checked():
    with pytest.raises(RangeError, match="feature set: 1 images have NaN"):
        FeatureSet(np.array([[1.0], [np.nan]]), "e", "p")
    with pytest.raises(InputError, match="2 images but 1 patient names"):
        FeatureSet(np.zeros((2, 3)), "e", "p", ("a",))
    with pytest.raises(InputError, match="subset of 3 images was asked of a set of 2"):
        FeatureSet(np.zeros((2, 3)), "e", "p").subset(3, 0)


def test_unknown_measure_and_foreign_json(result):
    with pytest.raises(InputError, match="no measure 'fid', there are: frechet, kid"):
        result.measure("fid")
    with pytest.raises(InputError, match="not the result of an evaluation"):
        result_from_dict({"measures": []})

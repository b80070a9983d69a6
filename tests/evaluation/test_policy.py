"""Conformal cuts by hand and by their guarantee; the rules for one image and for a set."""

import numpy as np
import pytest

from medisyn.errors import ConfigError, InputError
from medisyn.evaluation.copies import Closeness, Near
from medisyn.evaluation.policy import Policy, calibrate, conformal_cut, judge_set, policy_from_dict, reasons


def close(distance=0.5, similarity=0.1, bits=20.0):
    return Closeness(Near(0, distance, "none"), Near(0, similarity, "none"), Near(0, bits, "none"), None, None)


def test_cut_by_hand():
    scores = list(range(1, 200))  # n = 199: p <= 1 % allows 0.01 * 200 - 1 = 1 image as close
    assert conformal_cut(scores, 0.01) == 2.0
    assert conformal_cut(list(range(99)), 0.01) == 0.0  # none as close: the smallest
    assert conformal_cut(list(range(98)), 0.01) is None
    assert conformal_cut([], 0.5) is None
    assert conformal_cut([1.0], 1.0) == float("inf")  # p is never above 1


def test_cut_by_patient_by_hand():
    # 3 patients at level 1/2: 0.5 * 4 - 1 = 1 patient may be as close. a has four images, each a quarter of one:
    # 0.1, 0.2 (1/2), b's 0.3 (3/2 > 1)
    scores, patients = [0.1, 0.2, 0.8, 0.9, 0.3, 0.5], ["a", "a", "a", "a", "b", "c"]
    assert conformal_cut(scores, 0.5, patients) == 0.3
    assert conformal_cut(scores, 0.5) == 0.3  # as six patients: 2.5 may be as close, the third is above
    assert conformal_cut(scores, 0.25, patients) == 0.1
    assert conformal_cut(scores, 0.2, patients) is None


def test_a_new_real_image_passes_the_cut_as_seldom_as_promised():
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(2000):
        values = rng.normal(size=100)
        passed += values[0] < conformal_cut(values[1:], 0.05)
    assert 0.038 < passed / 2000 < 0.062  # below the fifth smallest of 99: 0.05 exactly, standard error 0.5 %


def test_patients_with_many_images_do_not_break_the_promise():
    rng = np.random.default_rng(1)
    by_patient = by_image = 0
    for _ in range(1500):
        centre = rng.normal(size=21)
        values = (centre[:, None] + 0.1 * rng.normal(size=(21, 12))).ravel()
        patients = np.repeat(np.arange(21), 12).astype(str)
        by_patient += values[0] < conformal_cut(values[12:], 0.05, patients[12:])
        by_image += values[0] < conformal_cut(values[12:], 0.05)
    assert by_patient / 1500 < 0.065  # at most 0.05, standard error 0.6 %
    assert by_image >= by_patient


def test_cuts_that_are_not_finite():
    with pytest.raises(InputError, match="held-out score is NaN"):
        conformal_cut([0.1, float("nan")], 0.5)


def test_small_strata_are_pooled_and_tiny_pools_are_not_calibrated():
    held_out = [close(0.1 + n / 1000) for n in range(99)] + [close(0.3 + n / 1000) for n in range(12)]
    held_out += [close(0.2) for _ in range(8)]
    strata = ["large"] * 99 + ["small"] * 12 + ["other"] * 8
    found = calibrate(held_out, strata, Policy())
    own = found.cut("large", "distance")
    assert (own.below, own.level, own.patients, own.source) == (0.1, 0.01, 99, "own stratum")
    for name in ("small", "other", "never seen"):
        cut = found.cut(name, "distance")
        assert (cut.below, cut.source, cut.held_out) == (0.2, "pooled", 20)
        assert cut.level == pytest.approx(1 / 21)
    alone = calibrate(held_out[:18], strata[:18], Policy()).cut("large", "bits")
    assert (alone.below, alone.source) == (None, "not calibrated")
    one_patient = calibrate(held_out[:99], strata[:99], Policy(), ["p"] * 99).cut("large", "distance")
    assert (one_patient.below, one_patient.held_out, one_patient.patients) == (None, 99, 1)
    assert calibrate([], [], Policy()).cut("any", "distance").below is None
    with pytest.raises(InputError, match="1 held-out images but 0 strata and 1 patients"):
        calibrate(held_out[:1], [], Policy())


def test_an_image_is_withheld_within_the_limit_and_closer_than_the_cut():
    calibration = calibrate([close(0.05, 0.95, 2.0)] * 99, ["x"] * 99, Policy())
    policy = Policy(distance=0.15, similarity=0.9, bits=4)
    assert reasons(close(0.05, 0.95, 2), "x", policy, calibration) == []  # as close as real images are
    found = reasons(close(0.04, 0.96, 1), "x", policy, calibration)
    assert [text.split(";")[0] for text in found] == [
        "patch distance 0.040 to a training image, limit 0.15",
        "edge similarity 0.960 with a training image, limit 0.9",
        "perceptual hash 1 bits from a training image's, limit 4",
    ]
    assert "closer than 99.0% of 99 held-out patients' images (own stratum)" in found[0]
    nothing = calibrate([], [], Policy())
    assert reasons(close(0.15, 0.9, 4), "x", policy, nothing)[0].endswith("(not calibrated: 0 held-out patients)")
    assert len(reasons(close(0.15, 0.9, 4), "x", policy, nothing)) == 3  # the limits themselves count
    assert reasons(close(0.151, 0.899, 5), "x", policy, nothing) == []


def test_far_held_out_images_do_not_raise_the_limit():
    calibration = calibrate([close(0.8, 0.1, 30.0)] * 99, ["x"] * 99, Policy())
    assert reasons(close(0.2, 0.5, 10), "x", Policy(), calibration) == []


def test_the_set_fails_by_the_upper_bound():
    # 0 of 29: 1 - 0.05^(1/29) = 9.81 %, of 28: 10.15 %
    assert judge_set(0, 29, Policy()).passed
    few = judge_set(0, 28, Policy())
    assert not few.passed
    np.testing.assert_allclose(few.share_upper.high, 1 - 0.05 ** (1 / 28), rtol=1e-9)
    assert few.rules[0].found == "0 of 28, upper bound 10.15%"


def test_the_set_fails_by_the_attack():
    assert judge_set(0, 100, Policy(), 0.6).passed
    assert not judge_set(0, 100, Policy(), 0.61).passed
    missing = judge_set(0, 100, Policy(require_membership=True))
    assert not missing.passed
    assert missing.rules[1].found == "not run"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"alpah": 0.1}, "'alpah' is unknown, allowed: alpha, .* Did you mean 'alpha'"),
        ({"alpha": 2}, "alpha must lie between 0 and 1, got 2"),
        ({"distance": "far"}, "distance must lie between 0 and 1, got 'far'"),
        ({"bits": 65}, "bits must be a whole number from 0 to 64"),
        ({"require_membership": "yes"}, "require_membership must be true or false"),
        (["alpha"], "a policy is a mapping"),
    ],
)
def test_policies_that_are_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        policy_from_dict(content)


def test_a_policy_from_a_mapping():
    assert policy_from_dict({"alpha": 0.05, "bits": 0}) == Policy(alpha=0.05, bits=0)

"""Keyed-hash splits: shares, stability, duplicates, the balanced test set."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.corpus import splits
from medisyn.corpus.splits import Member, Shares
from medisyn.errors import ConfigError, CorpusError

DEFAULT = Shares()


def members(names, specialty="radiology"):
    return [Member(name, specialty, f"picture of {name}") for name in names]


@given(st.lists(st.text(min_size=1), min_size=2, unique=True))
def test_adding_patients_moves_nobody(names):
    before = splits.assign(members(names[:-1]), DEFAULT)
    after = splits.assign(members(names), DEFAULT)
    assert all(after[name] == before[name] for name in names[:-1])


def test_the_shares_are_met_over_many_patients():
    counts = Counter(splits.assign(members([f"p{n}" for n in range(20_000)]), DEFAULT).values())
    assert 15_700 < counts["train"] < 16_300  # 16,000 with a standard deviation of 57
    assert 1_800 < counts["validation"] < 2_200
    assert 1_800 < counts["test"] < 2_200


@given(st.floats(0, 1, exclude_max=True), st.floats(1, 98), st.floats(0, 1))
def test_a_larger_train_share_takes_nobody_out_of_train(place, train, more):
    smaller = Shares(train, (100 - train) / 2, (100 - train) / 2)
    larger_train = train + more
    larger = Shares(larger_train, (100 - larger_train) / 2, (100 - larger_train) / 2)
    if splits.split_at(place, smaller) == "train":
        assert splits.split_at(place, larger) == "train"


@pytest.mark.parametrize(
    ("place", "expected"),
    [(0.0, "train"), (0.799, "train"), (0.8, "validation"), (0.899, "validation"), (0.9, "test"), (0.999, "test")],
)
def test_places_by_hand(place, expected):
    assert splits.split_at(place, DEFAULT) == expected


def test_duplicates_stay_together_and_train_wins():
    names = [f"p{n}" for n in range(400)]
    alone = splits.assign(members(names), DEFAULT)
    in_train = next(name for name in names if alone[name] == "train")
    in_validation = next(name for name in names if alone[name] == "validation")
    in_test = next(name for name in names if alone[name] == "test")

    def with_shared_picture(*pair):
        shared = [Member(name, "radiology", "the same picture") for name in pair]
        return splits.assign([*members(names), *shared], DEFAULT)

    assert with_shared_picture(in_test, in_train)[in_test] == "train"
    assert with_shared_picture(in_test, in_validation)[in_test] == "validation"
    chain = [Member(in_validation, "radiology", "picture 2"), Member(in_test, "radiology", "picture 2")]
    joined = splits.assign([*members([in_validation, in_test, in_train]), *chain], DEFAULT)
    assert joined[in_test] == joined[in_validation] == "validation"
    assert joined[in_train] == "train"


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=20), st.randoms())
def test_clusters_do_not_depend_on_the_order(pairs, random):
    def build(order):
        clusters = splits.Clusters()
        for a, b in order:
            clusters.join(str(a), str(b))
        return [clusters.find(str(n)) for n in range(16)]

    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert build(pairs) == build(shuffled)


def test_a_given_split_is_kept():
    unit = next(f"p{n}" for n in range(99) if splits.split_at(splits.position(f"p{n}"), DEFAULT) == "train")
    assert splits.assign([Member(unit, "radiology", "x", "test")], DEFAULT) == {unit: "test"}


def test_regions_fill_every_split():
    for number in range(20):
        chosen = splits.region_splits(range(10), f"group {number}", DEFAULT)
        assert Counter(chosen.values()) == {"train": 8, "validation": 1, "test": 1}
        assert sorted(chosen) == list(range(10))
    assert Counter(splits.region_splits([3, 5, 9], "g", DEFAULT).values()) == {"train": 1, "validation": 1, "test": 1}
    assert splits.region_splits([4], "g", DEFAULT) == {4: "train"}


def test_the_balanced_test_set_reserves_whole_patients_of_each_specialty():
    # 60 patients with 3 pictures each in two specialties: 5 wanted means 2 patients, 6 pictures
    listed = [
        Member(f"{specialty}-{patient}", specialty, f"{specialty}-{patient}-{shot}")
        for specialty in ("radiology", "pathology")
        for patient in range(60)
        for shot in range(3)
    ]
    chosen = splits.assign(listed, DEFAULT, test_per_specialty=5)
    reserved = Counter(member.specialty for member in listed if chosen[member.unit] == "test")
    assert reserved == {"radiology": 6, "pathology": 6}
    assert Counter(chosen.values())["validation"] > 3
    first = [unit for unit in sorted(chosen, key=splits.position) if unit.startswith("radiology")][:2]
    assert all(chosen[unit] == "test" for unit in first)


def test_a_balanced_test_set_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(CorpusError, match="'radiology' has 3 samples, and 0 would be left"):
        splits.assign(members(["a", "b", "c"]), DEFAULT, test_per_specialty=3)
    with pytest.raises(CorpusError, match="'radiology' has 3 samples, and 0 would"):
        splits.assign(members(["a", "b", "c"]), DEFAULT, test_per_specialty=125)
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        splits.assign(members(["a"]), DEFAULT, test_per_specialty=0)


def test_shares_from_text():
    assert Shares.parse("70:10:20") == Shares(70, 10, 20)
    with pytest.raises(ConfigError, match="write three numbers"):
        Shares.parse("80:20")
    with pytest.raises(ConfigError, match="must be 0 or more, with train above 0"):
        Shares.parse("0:50:50")
    for wrong in ("80:-1:10", "80:nan:10", "inf:10:10"):
        with pytest.raises(ConfigError, match="must be 0 or more"):
            Shares.parse(wrong)


def test_pseudonyms_depend_on_key_and_every_part():
    names = {
        splits.pseudonym(b"key", "a", "b"),
        splits.pseudonym(b"other", "a", "b"),
        splits.pseudonym(b"key", "ab"),
        splits.pseudonym(b"key", "a", "c"),
    }
    assert len(names) == 4
    assert splits.pseudonym(b"key", "a", prefix="p").startswith("p-")
    assert splits.pseudonym(b"key", "a") == splits.pseudonym(b"key", "a")


def test_leaks_name_the_units_in_two_splits():
    assert splits.leaks({"p-1": ["train", "train"], "p-2": ["train", "test"], "p-0": ["test", "validation"]}) == [
        "p-0",
        "p-2",
    ]

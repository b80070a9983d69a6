from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.errors import ConfigError, InputError
from medisyn.seeding import share
from medisyn.training.order import Order, Split, balanced_weights, draw_keys


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32))
def test_every_epoch_takes_every_sample_once(num_samples, batch_size, seed):
    order = Order(num_samples, batch_size, seed)
    stream = [row for step in range(2 * num_samples) for row in order.batch(step)]
    for epoch in range(2):
        assert sorted(stream[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


def test_epochs_and_seeds_are_shuffled_differently():
    order = Order(50, 50, seed=1)
    assert order.batch(0) != order.batch(1)
    assert order.batch(0) != Order(50, 50, seed=2).batch(0)
    assert order.batch(0) == Order(50, 50, seed=1).batch(0)


@given(st.integers(1, 5), st.integers(0, 40))
def test_the_batch_of_a_step_does_not_depend_on_the_ranks(world_size, step):
    rows = Order(13, 8, seed=3).batch(step)
    shares = [share(rows, rank, world_size) for rank in range(world_size)]
    assert Counter(rows) == Counter(row for part in shares for row in part)


def test_variants_take_turns():
    # 3 variants: in 3 epochs each of the 5 * 3 stored rows comes exactly once
    order = Order(5, 5, seed=0, variants=3)
    rows = [row for step in range(3) for row in order.batch(step)]
    assert sorted(rows) == list(range(15))
    assert sorted(row // 3 for row in rows[:5]) == list(range(5))


def test_weighted_draws_follow_the_weights():
    weights = balanced_weights(["rare"] + ["common"] * 9)
    np.testing.assert_allclose(weights, [1 / 2] + [1 / 18] * 9)
    order = Order(10, 20, seed=0, variants=2, weights_N=weights)
    drawn = Counter(row for step in range(200) for row in order.batch(step))
    # 4,000 draws, half of them sample 0 (rows 0 and 1); the standard deviation is sqrt(4000 / 4) = 32
    assert abs(drawn[0] + drawn[1] - 2000) < 160
    assert abs(drawn[0] - drawn[1]) < 250
    assert order.batch(7) == order.batch(7) != order.batch(8)


def test_a_weight_of_zero_is_never_drawn():
    order = Order(3, 50, seed=0, weights_N=np.array([0.0, 1.0, 0.0]))
    assert set(order.batch(0)) == {1}


def test_epochs_done():
    assert Order(10, 4, seed=0).epoch(5) == 2.0


def test_keys_that_come_twice_in_a_batch_draw_other_noise():
    assert draw_keys(7, ["a", "b", "a", "a"]) == ["7/a", "7/b", "7/a/1", "7/a/2"]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([1.0], "one finite number"),
        ([1.0, -1.0], "one finite number"),
        ([np.nan, 1.0], "one finite"),
        ([0, 0], "all are 0"),
    ],
)
def test_weights_that_are_refused(weights, text):
    with pytest.raises(InputError, match=text):
        Order(2, 1, 0, weights_N=np.array(weights))


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="0 examples"):
        Order(0, 1, 0)


def test_the_steps_that_end_an_epoch_by_hand():
    # 130 samples in batches of 128: epochs end within steps 2, 3, 4, ...; 10 samples in batches of 4: steps 3, 5, 8, 10
    assert [done for done in range(1, 6) if Order(130, 128, 0).ends_epoch(done)] == [2, 3, 4, 5]
    assert [done for done in range(1, 11) if Order(10, 4, 0).ends_epoch(done)] == [3, 5, 8, 10]
    assert [done for done in range(1, 7) if Order(4, 2, 0).ends_epoch(done)] == [2, 4, 6]


def test_the_paper_s_split_by_hand():
    # 8 processes, half of them on 32 clips and half on 512 pictures: 4 x 8 clips, 4 x 128 pictures
    split = Split((32, 512), (0.5, 0.5), 8)
    assert [[len(slots) for slots in split.slots(rank)] for rank in range(8)] == [[8, 0]] * 4 + [[0, 128]] * 4
    # the ranks' average of sums: (4 ranks x 8 clips x weight) / 8 ranks = 0.5, as the mean over 32 clips times 0.5
    assert split.loss_weight(0) * 32 / 8 == pytest.approx(0.5)
    assert split.loss_weight(1) * 512 / 8 == pytest.approx(0.5)


@given(
    st.lists(st.integers(8, 30), min_size=1, max_size=3),
    st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    st.integers(1, 8),
)
def test_every_slot_has_one_rank(sizes, weights, world_size):
    if 1 < world_size < len(sizes):
        return
    split = Split(tuple(sizes), tuple(weights[: len(sizes)]), world_size)
    places = [place for rank in range(world_size) for place in split.places(rank)]
    assert sorted(places) == list(range(sum(sizes)))
    for kind, size in enumerate(sizes):  # as the mean over the kind's slots, times its weight
        assert split.loss_weight(kind) * size / world_size == pytest.approx(weights[kind])


def test_one_kind_is_shared_as_any_list():
    split = Split((8,), (1.0,), 3)
    assert [split.places(rank) for rank in range(3)] == [list(share(range(8), rank, 3)) for rank in range(3)]


@pytest.mark.parametrize(
    ("sizes", "weights", "world_size", "text"),
    [
        ((1,), (1.0,), 2, "batch_size 1 is smaller than the number of processes"),
        ((4, 4), (0.5, 0.0), 1, "must be above 0"),
        ((4, 4, 4), (1.0, 1.0, 1.0), 2, "3 kinds of example need one process, or at least one each"),
    ],
)
def test_splits_that_are_refused(sizes, weights, world_size, text):
    with pytest.raises(ConfigError, match=text):
        Split(sizes, weights, world_size)

import pytest
import torch

from build_training import Rows
from medisyn.errors import ConfigError, InputError
from medisyn.training.batches import Joint, Kind, kinds_of, orders_of, read_step, stream, variants_of
from medisyn.training.order import Order, Split


def plain(rows, micro_batch_size):
    return kinds_of(rows, 5, micro_batch_size)


def split_of(world_size):
    return Split((5,), (1.0,), world_size)


def test_ranks_together_read_the_effective_batch():
    rows, order = Rows(11), Order(11, 5, seed=0)
    whole = read_step(plain(rows, 2), [order], split_of(1), 3, rank=0)
    assert [len(part["x"]) for part in whole.passes] == [2, 2, 1]
    assert whole.keys_B == [rows.keys[row] for row in order.batch(3)]
    halves = [read_step(plain(rows, 2), [order], split_of(2), 3, rank) for rank in range(2)]
    assert torch.equal(
        torch.cat([part["x"] for part in whole.passes])[1::2], torch.cat([p["x"] for p in halves[1].passes])
    )
    assert halves[0].draw_keys_R == whole.draw_keys_R[0::2]


def test_streaming_equals_reading():
    rows, order = Rows(11), Order(11, 5, seed=0)
    streamed = list(stream(plain(rows, 5), [order], split_of(1), range(2, 6), 0))
    assert [item.step for item in streamed] == [2, 3, 4, 5]
    for item in streamed:
        again = read_step(plain(rows, 5), [order], split_of(1), item.step, 0)
        assert torch.equal(item.passes[0]["x"], again.passes[0]["x"])


def test_rows_and_keys_must_fit():
    rows = Rows(4)
    rows.variants = 3  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="4 rows do not fit 4 keys with 3 variants"):
        variants_of(rows)


def joint(clips=11, frames=7):
    main, other = Rows(clips), Rows(frames)
    other.keys = [f"{key}/frame" for key in other.keys]
    return Joint([Kind("clips", main, 5, 2, 0.5), Kind("frames", other, 9, 4, 0.25)])


def test_one_process_reads_every_kind_in_turn():
    examples = joint()
    kinds = kinds_of(examples, 5, 2)
    orders = orders_of(kinds, Order(11, 5, seed=0))
    rows = read_step(kinds, orders, Split((5, 9), (0.5, 0.25), 1), 2, rank=0)
    assert [len(part["x"]) for part in rows.passes] == [2, 2, 1, 4, 4, 1]
    assert rows.kinds == [0, 0, 0, 1, 1, 1]
    assert [key.endswith("/frame") for key in rows.keys_B] == [False] * 5 + [True] * 9
    assert rows.draw_keys_R[0] == f"2/{rows.keys_B[0]}"
    assert len(set(rows.draw_keys_R)) == 14  # no two slots share their noise
    assert (len(examples), examples.keys, examples.variants) == (11, examples.main.keys, 1)
    assert torch.equal(examples[3]["x"], examples.main[3]["x"])


def test_ranks_together_read_every_kind():
    kinds = kinds_of(joint(), 5, 2)
    orders = orders_of(kinds, Order(11, 5, seed=0))
    whole = read_step(kinds, orders, Split((5, 9), (0.5, 0.25), 1), 4, rank=0)
    split = Split((5, 9), (0.5, 0.25), 3)
    parts = [read_step(kinds, orders, split, 4, rank) for rank in range(3)]
    assert [set(part.kinds) for part in parts] == [{0}, {0}, {1}]
    assert sorted(key for part in parts for key in part.draw_keys_R) == sorted(whole.draw_keys_R)
    for rank, part in enumerate(parts):
        assert part.keys_B == whole.keys_B
        assert [whole.draw_keys_R[place] for place in split.places(rank)] == part.draw_keys_R


def test_the_kinds_do_not_go_in_step():
    kinds = kinds_of(joint(20, 20), 5, 2)
    first, second = orders_of(kinds, Order(20, 5, seed=0))
    assert first.batch(0) != second.batch(0)[:5]


def test_joint_examples_that_do_not_fit():
    with pytest.raises(ConfigError, match="4 stand in more than one"):
        Joint([Kind("clips", Rows(11), 5, 2, 0.5), Kind("frames", Rows(4), 9, 4, 0.5)])
    with pytest.raises(ConfigError, match="has batch 5 in passes of 2, the run 6 in passes of 2"):
        kinds_of(joint(), 6, 2)

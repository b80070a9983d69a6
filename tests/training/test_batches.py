import pytest
import torch

from build_training import Rows
from medisyn.errors import InputError
from medisyn.training.batches import read_step, stream, variants_of
from medisyn.training.order import Order


def test_ranks_together_read_the_effective_batch():
    rows, order = Rows(11), Order(11, 5, seed=0)
    whole = read_step(rows, order, 3, rank=0, world_size=1, micro_batch_size=2)
    assert [len(part["x"]) for part in whole.passes] == [2, 2, 1]
    assert whole.keys_B == [rows.keys[row] for row in order.batch(3)]
    halves = [read_step(rows, order, 3, rank, 2, 2) for rank in range(2)]
    assert torch.equal(
        torch.cat([part["x"] for part in whole.passes])[1::2], torch.cat([p["x"] for p in halves[1].passes])
    )
    assert halves[0].draw_keys_R == whole.draw_keys_R[0::2]


def test_streaming_equals_reading():
    rows, order = Rows(11), Order(11, 5, seed=0)
    streamed = list(stream(rows, order, range(2, 6), 0, 1, 5))
    assert [item.step for item in streamed] == [2, 3, 4, 5]
    for item in streamed:
        assert torch.equal(item.passes[0]["x"], read_step(rows, order, item.step, 0, 1, 5).passes[0]["x"])


def test_rows_and_keys_must_fit():
    rows = Rows(4)
    rows.variants = 3  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="4 rows do not fit 4 keys with 3 variants"):
        variants_of(rows)

import contextlib

import pytest
import torch

from build_training import settings
from medisyn.training.ema import Ema, effective_decay


def test_warm_up_rule_by_hand():
    assert effective_decay(0.9, 1) == 2 / 11
    assert effective_decay(0.9, 8) == 9 / 18
    assert effective_decay(0.9, 1000) == 0.9


def test_start_and_interval_by_hand():
    weight = torch.nn.Parameter(torch.zeros(1))
    ema = Ema([weight], settings(ema_decay=0.9, ema_start=2, ema_interval=3))
    seen = []
    for step in range(1, 9):
        weight.data.fill_(float(step))
        ema.update(step)
        seen.append(None if ema.shadow is None else float(ema.shadow[0]))
    # starts as a copy at step 2; step 5 is update 1: 2 + (1 - 2/11) * (5 - 2); step 8 update 2: decay 3/12
    at_5 = 2 + 9 / 11 * 3
    at_8 = at_5 + 3 / 4 * (8 - at_5)
    assert seen[0] is None
    assert seen[1:4] == [2.0, 2.0, 2.0]
    assert seen[4:] == pytest.approx([at_5, at_5, at_5, at_8], rel=1e-6)


def test_swapping_gives_the_own_weights_back_bit_for_bit():
    weight = torch.nn.Parameter(torch.randn(5))
    ema = Ema([weight], settings(ema_decay=0.5, ema_start=0, ema_interval=1))
    before = weight.detach().clone()
    ema.update(1)
    weight.data.add_(1)
    after = weight.detach().clone()
    with contextlib.suppress(KeyError), ema.swapped_in():
        assert torch.equal(weight, before)
        raise KeyError("an export that fails")
    assert torch.equal(weight, after)


def test_without_decay_there_is_no_average():
    weight = torch.nn.Parameter(torch.ones(1))
    ema = Ema([weight], settings(ema_decay=0.0, ema_start=0))
    ema.update(1)
    with ema.swapped_in():
        assert ema.shadow is None
        assert weight.tolist() == [1.0]

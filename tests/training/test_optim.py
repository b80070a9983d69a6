import math

import pytest
import torch

from build_training import settings
from medisyn.errors import ModelError
from medisyn.families.base import ParamGroup
from medisyn.training.optim import build_optimizer, check_groups, learning_rate_at, set_learning_rate


def test_warm_up_then_constant_by_hand():
    asked = settings(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate_at(step, asked) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_by_hand():
    asked = settings(learning_rate=2.0, schedule="cosine", num_steps=8, final_lr_share=0.1)
    # halfway: 2 * (0.1 + 0.9 / 2); a quarter: 2 * (0.1 + 0.9 * (1 + cos(pi / 4)) / 2); at the end: 2 * 0.1
    assert learning_rate_at(0, asked) == 2.0
    assert learning_rate_at(2, asked) == pytest.approx(0.2 + 0.9 * (1 + math.sqrt(0.5)), rel=1e-12)
    assert learning_rate_at(4, asked) == pytest.approx(1.1, rel=1e-12)
    assert learning_rate_at(8, asked) == pytest.approx(0.2, rel=1e-12)


def test_groups_keep_their_own_rate_and_decay():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    groups = [ParamGroup("a", [a]), ParamGroup("b", [b], lr_scale=0.5, weight_decay=0.0)]
    optimizer = build_optimizer(groups, settings(weight_decay=0.3))
    set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([ParamGroup("empty", [])], "no trainable parameters"),
        ([ParamGroup("x", [torch.nn.Parameter(torch.ones(1))])] * 2, "different names, got x, x"),
        ([ParamGroup("x", [torch.nn.Parameter(torch.ones(1).bfloat16())])], "'x' holds torch.bfloat16"),
    ],
)
def test_groups_that_are_refused(groups, text):
    with pytest.raises(ModelError, match=text):
        check_groups(groups)

"""AdamW over the family's parameter groups, and the learning rate as a pure function of the optimiser step.

The rate is not kept in a scheduler object: accelerate steps those once per process, and a resumed one must be restored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medisyn.errors import ModelError
from medisyn.families.base import ParamGroup
from medisyn.training.settings import TrainSettings


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """The rate of optimiser step `step` (0-based): linear warm-up, then constant or half a cosine."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(settings.num_steps - settings.warmup_steps, 1)
    share = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return settings.learning_rate * (settings.final_lr_share + (1 - settings.final_lr_share) * share)


def check_groups(groups: Sequence[ParamGroup]) -> None:
    """Raises ModelError when there is nothing to train, names repeat or weights are not float32."""
    if not any(len(group.parameters) for group in groups):
        raise ModelError("the family has no trainable parameters; nothing would be learnt")
    names = [group.name for group in groups]
    if len(set(names)) != len(names):
        raise ModelError(f"the family's parameter groups must have different names, got {', '.join(names)}")
    for group in groups:
        wrong = {parameter.dtype for parameter in group.parameters} - {torch.float32}
        if wrong:
            raise ModelError(
                f"parameter group {group.name!r} holds {', '.join(sorted(map(str, wrong)))}; trained weights must be "
                "float32, since small updates vanish in half precision (autocast computes in bf16 all the same)"
            )


def build_optimizer(groups: Sequence[ParamGroup], settings: TrainSettings) -> torch.optim.AdamW:
    """Fused AdamW: three times as fast as the default on a CPU."""
    check_groups(groups)
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters),
                "lr_scale": group.lr_scale,
                "weight_decay": settings.weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group in groups
            if len(group.parameters)
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.adam_epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]

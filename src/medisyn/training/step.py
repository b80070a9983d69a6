"""One optimiser step: losses per sample, their gradients over accumulated passes, the guard, and the update.

Shapes here: B effective batch (all ranks), R this rank's rows, M rows of one forward pass, K kinds of example.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from medisyn.errors import ModelError, TrainingError
from medisyn.families.base import Family
from medisyn.seeding import generator_for, seed_for
from medisyn.training.batches import StepRows
from medisyn.training.optim import learning_rate_at, set_learning_rate
from medisyn.training.order import Split
from medisyn.training.settings import TrainSettings


class LossModule(nn.Module):
    """The family's loss as one module, so that DistributedDataParallel reduces gradients during the backward pass."""

    def __init__(self, family: Family, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.family = family
        self.trained = nn.ParameterList(parameters)

    def forward(self, encoded: Mapping[str, torch.Tensor], draws: Sequence[torch.Generator]) -> torch.Tensor:
        losses_M = self.family.loss(encoded, draws)
        if losses_M.shape != (len(draws),):
            raise ModelError(
                f"family.loss must return one loss per sample, ({len(draws)},); got {tuple(losses_M.shape)}"
            )
        return losses_M


@dataclass(frozen=True)
class StepResult:
    """Of one optimiser step: loss over the effective batch, rate used, gradient norm before clipping.

    With one kind of example the loss is the mean; of several, the weighted sum of the means in `means_K`.
    """

    loss: float
    learning_rate: float
    grad_norm: float
    means_K: tuple[float, ...]


class NonFiniteLoss(TrainingError):
    """Raised before the weights were touched, so the state at hand is the one before the bad step."""


class Stepper:
    """Everything one step needs. All ranks see the losses of all samples, so all take the same decisions."""

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        settings: TrainSettings,
        split: Split,
    ) -> None:
        self.split = split
        self.module, self.parameters = module, list(parameters)
        self.optimizer, self.accelerator, self.settings = optimizer, accelerator, settings

    def run(self, rows: StepRows, stop_requested: Callable[[], bool]) -> tuple[StepResult, bool]:
        """One optimiser step on `rows`. The second value: whether any rank was asked to stop.

        Raises NonFiniteLoss, naming the samples, when a loss or the gradient is NaN or infinite.
        """
        self._seed_dropout(rows.step)
        losses_R = self._backward(rows)
        losses_B, grad_norm, stop = self._fetch(losses_R, self._clip(), stop_requested)
        self._guard(rows, losses_B)
        if not math.isfinite(grad_norm):
            self._refuse(rows, rows.keys_B, "the gradient")
        rate = learning_rate_at(rows.step, self.settings)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        means_K = tuple(float(part.mean()) for part in losses_B.split(list(self.split.sizes_K)))
        loss = sum(weight * mean for weight, mean in zip(self.split.weights_K, means_K, strict=True))
        return StepResult(loss, rate, grad_norm, means_K), stop

    def _seed_dropout(self, step: int) -> None:
        """As `torch.manual_seed` for the device in use; without CUDA that one formats a stack trace at each call."""
        seed = seed_for(self.settings.seed, f"dropout/{step}/{self.accelerator.process_index}")
        torch.default_generator.manual_seed(seed)
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _backward(self, rows: StepRows) -> torch.Tensor:
        """Gradients of the step's loss; the reduction between ranks, an average, waits for the last pass."""
        losses, first = [], 0
        for number, encoded in enumerate(rows.passes):
            last = number == len(rows.passes) - 1
            count = len(next(iter(encoded.values())))
            draws = [generator_for(self.settings.seed, key) for key in rows.draw_keys_R[first : first + count]]
            first += count
            encoded = {name: tensor.to(self.accelerator.device) for name, tensor in encoded.items()}
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                losses_M = self.module(encoded, draws)
                self.accelerator.backward(losses_M.float().sum() * self.split.loss_weight(rows.kinds[number]))
            losses.append(losses_M.detach().float())
        return torch.cat(losses)

    def _clip(self) -> torch.Tensor:
        """Clip the gradients; their norm before that, still on the device."""
        limit = self.settings.max_grad_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.parameters, limit)

    def _fetch(
        self, losses_R: torch.Tensor, norm: torch.Tensor, stop_requested: Callable[[], bool]
    ) -> tuple[torch.Tensor, float, bool]:
        """Losses of all ranks in the order of the batch, on the CPU, the norm, and whether any rank wants to stop.

        One transfer from the device, so that it waits for the CPU once per step.
        """
        world_size, norm = self.accelerator.num_processes, norm.reshape(1)
        if world_size == 1:
            fetched = torch.cat([losses_R, norm]).cpu()
            return fetched[:-1], float(fetched[-1]), stop_requested()
        places = [self.split.places(rank) for rank in range(world_size)]
        message = torch.zeros(max(map(len, places)) + 1, device=losses_R.device)
        message[: len(losses_R)], message[-1] = losses_R, float(stop_requested())
        fetched = torch.cat([self.accelerator.gather(message), norm]).cpu()
        gathered, grad_norm = fetched[:-1].reshape(world_size, -1), float(fetched[-1])
        losses_B = torch.empty(sum(self.split.sizes_K))
        for rank, mine in enumerate(places):
            losses_B[mine] = gathered[rank, : len(mine)]
        return losses_B, grad_norm, bool(gathered[:, -1].any())

    def _guard(self, rows: StepRows, losses_B: torch.Tensor) -> None:
        bad = [key for key, loss in zip(rows.keys_B, losses_B.tolist(), strict=True) if not math.isfinite(loss)]
        if bad:
            self._refuse(rows, bad, "the loss")

    def _refuse(self, rows: StepRows, keys: Sequence[str], what: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        named = ", ".join(list(dict.fromkeys(keys))[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        raise NonFiniteLoss(
            f"step {rows.step + 1}: {what} is not finite for sample(s) {named}. The weights are as before this step "
            "and were saved. If it is always the same sample, leave it out of the corpus; else lower learning_rate "
            "or set precision=fp32, in a new run."
        )

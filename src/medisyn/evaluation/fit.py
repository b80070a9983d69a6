"""Teach a network the classes of labelled images: draws, augmentation, one loop, and the best state on held-out images.

Shapes here: N images, B batch, H, W pixels, K classes; "..." is H, W, C of pictures or D, H, W of volumes.
`fit` trains the medical encoder and the judge classifier, two networks of two makes from two seeds, for a number of
steps with class-balanced draws. `fit_best` trains the classifiers of the utility experiments in shuffled epochs and
keeps the state that scores best on validation images. Both run through `steps_of`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medisyn.errors import InputError, TrainingError
from medisyn.seeding import generator_for

PRECISIONS = ("bfloat16", "float32")  # of the autocast; float32 is none


@dataclass(frozen=True)
class Augmentation:
    """The ranges from which a view is drawn; shares are of the image's side, grey levels of 0 to 255."""

    degrees: float = 8.0
    zoom: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.08
    mirror_x: float = 0.5  # the chance of a left-right mirror image
    mirror_y: float = 0.5
    contrast: tuple[float, float] = (0.8, 1.2)
    tint: tuple[float, float] = (0.88, 1.12)  # contrast of single channels on top
    brightness: float = 24.0
    noise: float = 6.0  # largest standard deviation
    channel_dropout: float = 0.0  # the chance that one of the three channels is set to 0


# Tint and brightness keep a class from being known by the stain or the lamp of its slides.
ENCODER_AUGMENTATION = Augmentation()


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how."""

    steps: int
    seed: int
    batch_size: int = 32
    learning_rate: float = 2e-3  # AdamW on 0.6 M parameters, warmed up over 5 % of the steps, then a half cosine to 0
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    balance: float = 0.5  # 0: classes as often as their images; 1: all equally often, which overrates the rarest
    augmentation: Augmentation = ENCODER_AUGMENTATION
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(f"fitting needs at least 1 step and 1 image, got {self.steps} and {self.batch_size}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be {' or '.join(PRECISIONS)}, got {self.precision!r}")


@dataclass(frozen=True)
class View:
    """One augmentation per image of a batch, drawn before it is applied: sampling grids, colours, noise."""

    affine_B23: Tensor
    gain_B3: Tensor
    offset_B3: Tensor
    noise: float
    dropped_B: Tensor | None = None  # the channel that is set to 0, or -1


def draw_view(generator: torch.Generator, num_images: int, ranges: Augmentation = ENCODER_AUGMENTATION) -> View:
    """One view per image: mirror, turn, zoom, shift, contrast, tint, brightness and noise within `ranges`."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    angle = uniform(-ranges.degrees, ranges.degrees, num_images) * torch.pi / 180
    zoom = uniform(*ranges.zoom, num_images)
    mirror_x = torch.where(uniform(0, 1, num_images) < ranges.mirror_x, -1.0, 1.0)
    mirror_y = torch.where(uniform(0, 1, num_images) < ranges.mirror_y, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = torch.stack([torch.stack([cos * mirror_x, -sin * mirror_y]), torch.stack([sin * mirror_x, cos * mirror_y])])
    affine = torch.cat([rows.permute(2, 0, 1), uniform(-ranges.shift, ranges.shift, num_images, 2, 1)], dim=2)
    gain = uniform(*ranges.contrast, num_images, 1) * uniform(*ranges.tint, num_images, 3)
    offset = uniform(-ranges.brightness, ranges.brightness, num_images, 1).expand(num_images, 3)
    noise = float(uniform(0, ranges.noise, 1))
    if not ranges.channel_dropout:
        return View(affine, gain, offset, noise)
    channel = torch.randint(0, 3, (num_images,), generator=generator)
    return View(affine, gain, offset, noise, channel.where(uniform(0, 1, num_images) < ranges.channel_dropout, -1))


def apply_view(rgb_BCHW: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """The batch as the view shows it, clipped to 0..255."""
    grid = nn.functional.affine_grid(view.affine_B23, list(rgb_BCHW.shape), align_corners=False)
    seen = nn.functional.grid_sample(rgb_BCHW, grid, padding_mode="reflection", align_corners=False)
    seen = (seen - 127.5) * view.gain_B3[:, :, None, None] + 127.5 + view.offset_B3[:, :, None, None]
    seen = (seen + view.noise * torch.randn(seen.shape, generator=generator)).clamp(0, 255)
    if view.dropped_B is not None:
        seen = seen * (torch.arange(seen.shape[1])[None] != view.dropped_B[:, None])[:, :, None, None]
    return seen


def draw_balanced(labels_N: np.ndarray, num_images: int, rng: np.random.Generator, balance: float) -> np.ndarray:
    """Indices of a batch: a class with a chance in proportion to images^(1 - balance), then one of its images."""
    classes, counts = np.unique(labels_N, return_counts=True)
    chances = counts.astype(np.float64) ** (1.0 - balance)
    drawn = rng.choice(classes, num_images, p=chances / chances.sum())
    return np.array([rng.choice(np.flatnonzero(labels_N == label)) for label in drawn])


def learning_rate_at(step: int, settings: FitSettings) -> float:
    """Linear warm-up over the first 5 % (at least 1 step), then a half cosine that ends at 0."""
    warm = max(1, settings.steps // 20)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, settings.steps - warm)
    return settings.learning_rate * 0.5 * (1 + float(np.cos(np.pi * done)))


def fit(
    network: nn.Module,
    images_NHWC: np.ndarray,
    labels_N: np.ndarray,
    settings: FitSettings,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `network` (float RGB 0..255 in, class scores out) and return the loss of every step.

    `images_NHWC` is uint8 RGB at the network's size. Raises TrainingError when the loss is not finite.
    """
    if len(images_NHWC) != len(labels_N) or len(np.unique(labels_N)) < 2:
        raise InputError(
            f"a classifier needs images of at least 2 classes, one label each: got {len(images_NHWC)} images, "
            f"{len(labels_N)} labels, {len(np.unique(labels_N))} classes"
        )
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=settings.weight_decay, fused=True)
    _lay_out(network, torch.channels_last)
    losses = []
    batches = _balanced_batches(images_NHWC, labels_N, settings)
    rates = (learning_rate_at(step, settings) for step in range(settings.steps))
    steps = steps_of(
        network, batches, optimizer, criterion, rates=rates, max_grad_norm=1.0, precision=settings.precision
    )
    for step, loss in steps:
        losses.append(loss)
        if on_step is not None:
            on_step(step, loss)
    _lay_out(network.eval(), torch.contiguous_format)
    return losses


def _balanced_batches(
    images_NHWC: np.ndarray, labels_N: np.ndarray, settings: FitSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(settings.seed)
    draws = generator_for(settings.seed, "views")
    for _ in range(settings.steps):
        chosen = draw_balanced(labels_N, settings.batch_size, rng, settings.balance)
        rgb = torch.from_numpy(images_NHWC[chosen]).permute(0, 3, 1, 2).float()
        rgb = apply_view(rgb, draw_view(draws, len(chosen), settings.augmentation), draws)
        yield rgb.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels_N[chosen]).long()


def steps_of(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    rates: Iterable[float] | None = None,
    max_grad_norm: float | None = None,
    precision: str,
    device: str = "cpu",
) -> Iterator[tuple[int, float]]:
    """One step per batch, yielding its number and loss; `network` is in training mode at each step.

    rates: the learning rate of each step, where it is not the optimiser's own throughout. precision: of the autocast;
    float32 is none. Raises TrainingError when the loss is not finite.
    """
    rate_of = None if rates is None else iter(rates)
    for step, (inputs, targets) in enumerate(batches):
        network.train()
        if rate_of is not None:
            rate = next(rate_of)
            for group in optimizer.param_groups:
                group["lr"] = rate
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            scores = network(inputs.to(device))
        loss = criterion(scores.float(), targets.to(device))
        if not torch.isfinite(loss):
            raise TrainingError(f"classifier: the loss at step {step} is {loss.item()}; lower the learning rate")
        loss.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step, loss.item()


class ImageStack(Protocol):
    """Images that are read by their numbers: an array, also one that lies in a file (`numpy.memmap`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, numbers: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class TrainingImages:
    """What `fit_best` learns from: images (N, ...) as `to_inputs` takes them, and targets (N, K) of 0 and 1."""

    images: ImageStack
    targets_NK: np.ndarray

    def __post_init__(self) -> None:
        if len(self.images) != len(self.targets_NK):
            raise InputError(f"{len(self.images)} images but {len(self.targets_NK)} targets")


@dataclass(frozen=True, kw_only=True)
class BestSettings:
    """How `fit_best` trains: constant learning rate, shuffled epochs, batches that run on over the end of an epoch."""

    steps: int
    seed: int
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    evaluations: int = 15  # how often the validation images are scored, evenly spread; the best state is kept
    multi_label: bool = False  # K sigmoids with binary cross-entropy; else one softmax with cross-entropy
    augmentation: Augmentation | None = None  # pictures only
    precision: str = "bfloat16"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or not 1 <= self.evaluations <= self.steps:
            raise InputError(
                f"a classifier needs at least 1 step, batches of 2 or more images and 1 to {self.steps} evaluations, "
                f"got {self.steps}, {self.batch_size} and {self.evaluations}"
            )
        if self.optimizer not in ("adam", "adamw") or self.precision not in PRECISIONS:
            raise InputError(
                f"the optimizer is adam or adamw, the precision bfloat16 or float32, got {self.optimizer!r} and "
                f"{self.precision!r}"
            )


@dataclass(frozen=True)
class BestFit:
    """The loss of every step, (step, score) of every evaluation, and the step whose state was kept."""

    losses: tuple[float, ...]
    scores: tuple[tuple[int, float], ...]
    best_step: int


def fit_best(
    network: nn.Module,
    train: TrainingImages,
    settings: BestSettings,
    score: Callable[[nn.Module], float] | None,
    on_step: Callable[[int, float], None] | None = None,
) -> BestFit:
    """Train `network` and leave it, in evaluation mode, in the state whose `score(network)` was highest.

    The first of equal scores wins. Without `score` the last state stays. Inputs reach the network as `to_inputs`
    makes them. Raises TrainingError when a loss is not finite.
    """
    maker = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    optimizer = maker(network.parameters(), lr=settings.learning_rate)
    criterion: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss()
    if settings.multi_label:
        criterion = nn.BCEWithLogitsLoss()
    due = {round(settings.steps * (n + 1) / settings.evaluations) for n in range(settings.evaluations)}
    losses: list[float] = []
    scores: list[tuple[int, float]] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    batches = _shuffled_batches(train, settings)
    steps = steps_of(network, batches, optimizer, criterion, precision=settings.precision, device=settings.device)
    for step, loss in steps:
        losses.append(loss)
        if on_step is not None:
            on_step(step, loss)
        if score is not None and step + 1 in due:
            scores.append((step + 1, score(network.eval())))
            if best is None or scores[-1][1] > best[0]:
                best = (scores[-1][1], step + 1, copy.deepcopy(network.state_dict()))
    if best is not None:
        network.load_state_dict(best[2])
    network.eval()
    return BestFit(tuple(losses), tuple(scores), best[1] if best is not None else settings.steps)


def to_inputs(images: np.ndarray) -> Tensor:
    """A batch as the network takes it: pictures (B, H, W, 3) uint8 to (B, 3, H, W) float 0..255, volumes (B, D, H, W)
    to (B, 1, D, H, W) float."""
    batch = torch.from_numpy(np.ascontiguousarray(images))
    if batch.ndim == 4 and batch.dtype == torch.uint8:
        return batch.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
    return batch.float()[:, None]


def _shuffled_batches(train: TrainingImages, settings: BestSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches from one shuffled epoch after another; a batch may reach over the end of an epoch."""
    rng = np.random.default_rng(settings.seed)
    draws = generator_for(settings.seed, "views")
    order = np.empty(0, dtype=int)
    for _ in range(settings.steps):
        while len(order) < settings.batch_size:
            order = np.concatenate([order, rng.permutation(len(train.images))])
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        inputs = to_inputs(train.images[chosen])
        if settings.augmentation is not None:
            inputs = apply_view(inputs, draw_view(draws, len(chosen), settings.augmentation), draws)
        targets = torch.from_numpy(train.targets_NK[chosen])
        yield inputs, targets.float() if settings.multi_label else targets.argmax(dim=1)


@torch.inference_mode()
def predict(network: nn.Module, images: ImageStack, settings: BestSettings) -> np.ndarray:
    """(N, K) float64 chances: sigmoids of a multi-label task, else a softmax. Computed in float32."""
    network.eval()
    found = []
    for start in range(0, len(images), settings.batch_size):
        numbers = np.arange(start, min(start + settings.batch_size, len(images)))
        scores = network(to_inputs(images[numbers]).to(settings.device)).double()
        found.append((scores.sigmoid() if settings.multi_label else scores.softmax(dim=1)).cpu().numpy())
    return np.concatenate(found)


def _lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Convolutions on the CPU are up to twice as fast with the channels last."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)

"""A family without a network that makes clips: a bright square whose pace is the motion factor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medisyn.errors import ConfigError
from medisyn.types import Clip, Picture, Request

MODEL = {"id": "fake-clips", "digest": "0123456789abcdef0123", "solver": "ddim", "dtype": "float32"}
LARGEST_MOTION = 1000


class FakeClips:
    """`batches` lists the keys of every `sample` call; `seconds` is how long one takes."""

    def __init__(self, seconds: float = 0.0, as_pictures: bool = False) -> None:
        self.seconds, self.as_pictures = seconds, as_pictures
        self.batches: list[list[str]] = []

    def resolve(self, request: Request) -> Request:
        if request.motion is not None and request.motion > LARGEST_MOTION:
            raise ConfigError(f"motion must lie in [0, {LARGEST_MOTION}], got {request.motion:g}")
        filled = {"frames": 6, "height": 16, "width": 24, "steps": 4, "guidance": 2.0, "motion": 300, "appearance": 0.7}
        return replace(request, **{k: v for k, v in filled.items() if getattr(request, k) is None})

    def lost_words(self, prompt: str) -> str:
        return ""

    def sample(self, requests: Sequence[Request]) -> Any:
        assert len({(r.height, r.width, r.frames, r.steps, r.guidance) for r in requests}) == 1, "mixed settings"
        self.batches.append([request.key for request in requests])
        time.sleep(self.seconds)
        return list(requests)

    def decode(self, latents: Any) -> list[Any]:
        if self.as_pictures:
            return [Picture(np.zeros((3, 4, 4), np.uint8)) for _ in latents]
        return [Clip(pixels(request), frames_per_second=12.5) for request in latents]


def pixels(request: Request) -> np.ndarray:
    """(3, T, H, W) uint8: noise of the request's seed, and a square that moves motion / 100 pixels a frame."""
    frames, height, width = request.frames or 6, request.height or 16, request.width or 24
    still = np.random.default_rng(request.seed).integers(0, 60, (3, 1, height, width), dtype=np.uint8)
    clip = np.repeat(still, frames, axis=1)
    for t in range(frames):
        left = int(t * (request.motion or 0) / 100) % (width - 6)
        clip[:, t, 4:10, left : left + 6] = 220
    return clip


def open_fake() -> FakeClips:
    return FakeClips(seconds=0.02)


def requests(n: int, **settings: Any) -> list[Request]:
    return [FakeClips().resolve(Request(f"{i:03d}", f"prompt {i}", seed=1000 + i, **settings)) for i in range(n)]

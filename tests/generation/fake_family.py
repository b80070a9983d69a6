"""A family without a network: each picture is noise from its request's own seed. Importable by other processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medisyn.types import Picture, Request

MODEL = {"id": "fake", "digest": "0123456789abcdef0123", "solver": "euler", "dtype": "float32"}


class FakeFamily:
    """`batches` lists the keys of every `sample` call; `seconds` is how long one takes."""

    def __init__(self, seconds: float = 0.0, channels: int = 3) -> None:
        self.seconds = seconds
        self.channels = channels
        self.batches: list[list[str]] = []

    def sample(self, requests: Sequence[Request]) -> Any:
        assert len({(r.height, r.width, r.steps, r.guidance) for r in requests}) == 1, "a batch of mixed settings"
        self.batches.append([request.key for request in requests])
        time.sleep(self.seconds)
        return list(requests)

    def decode(self, latents: Any) -> list[Picture]:
        return [Picture(pixels(request, self.channels)) for request in latents]


def pixels(request: Request, channels: int = 3) -> np.ndarray:
    """(C, H, W) uint8: what FakeFamily makes of a request."""
    shape = (channels, request.height or 16, request.width or 16)
    return np.random.default_rng(request.seed).integers(0, 256, shape, dtype=np.uint8)


def open_fake() -> FakeFamily:
    return FakeFamily(seconds=0.02)


def reject_dark(requests: Sequence[Request], pictures: Sequence[np.ndarray]) -> list[str | None]:
    """Throws away pictures whose first pixel is below 128: about half of them."""
    assert len(requests) == len(pictures)
    return ["dark corner" if picture[0, 0, 0] < 128 else None for picture in pictures]


def requests(n: int, **settings: Any) -> list[Request]:
    return [Request(f"{i:03d}", f"prompt {i}", seed=1000 + i, **settings) for i in range(n)]


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of what a run leaves for its reader; run.json holds times and is left out."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".jsonl"))
    return {name: (folder / name).read_bytes() for name in names}

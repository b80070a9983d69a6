"""What MedSyn's base network costs beside a straightforward 3D attention U-Net of the same number of weights.

The rival has attention at every level, within slices and through them, as in video diffusion (Ho et al., 2022); its
width, a multiple of 4, brings its number of weights nearest to ours. Both are fed alike and take turns in one process.

Time is that of a training step (forward, backward, AdamW) under bfloat16 autocast. Memory is what the forward pass
keeps for the backward pass, counted from the tensors that autograd saves, each storage once: the same on every machine.
On a GPU the allocator's peak is given too.

With --tile it also runs a few tiles of the paper's super-resolution network in bfloat16 without gradients, takes the
peak of their tensors, and projects the tile of 256 slices from a straight line through the depths measured.

    python benchmarks/medsyn_cost.py --sizes 32 --rounds 3 --width 32
    python benchmarks/medsyn_cost.py --sizes 64 --rounds 3 --width 64 --tile 72
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from medisyn import runs
from medisyn.families.medsyn.config import SUPERRES_PAPER, UNetConfig
from medisyn.families.medsyn.networks import build_unet

RESULTS = Path(__file__).parent / "results"
TEXT_TOKENS, TEXT_WIDTH = 96, 128
MULTIPLIERS = (1, 2, 4, 8)


class Attention(nn.Module):
    """Self-attention over the last but one axis of (..., S, C), with a skip."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in parts)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))


class RivalBlock(nn.Module):
    """A 3D residual block, attention within each slice, attention through slices at each place."""

    def __init__(self, inner: int, outer: int, time_width: int) -> None:
        super().__init__()
        self.time = nn.Linear(time_width, outer)
        self.first, self.second = nn.Conv3d(inner, outer, 3, padding=1), nn.Conv3d(outer, outer, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(4, outer), nn.GroupNorm(4, outer)
        self.skip = nn.Conv3d(inner, outer, 1)
        self.in_slice, self.through_slices = Attention(outer), Attention(outer)

    def forward(self, x: torch.Tensor, time_BV: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(self.norm1(self.first(x)) + self.time(time_BV)[:, :, None, None, None])
        x = F.silu(self.norm2(self.second(hidden))) + self.skip(x)
        height = x.shape[3]
        tokens_BDSC = self.in_slice(x.permute(0, 2, 3, 4, 1).flatten(2, 3))
        tokens_BSDC = self.through_slices(tokens_BDSC.transpose(1, 2))
        return tokens_BSDC.transpose(1, 2).unflatten(2, (height, -1)).permute(0, 4, 1, 2, 3)


class Rival(nn.Module):
    """A 3D U-Net with a block of attention at every level on the way down and up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * m for m in MULTIPLIERS]
        self.embed = nn.Sequential(nn.Linear(1, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.read = nn.Linear(TEXT_WIDTH, 4 * width)
        self.stem, self.head = nn.Conv3d(4, width, 3, padding=1), nn.Conv3d(width, 4, 1)
        self.downs = nn.ModuleList(RivalBlock(a, b, 4 * width) for a, b in zip([width, *widths], widths, strict=False))
        self.middle = RivalBlock(widths[-1], widths[-1], 4 * width)
        self.ups = nn.ModuleList(
            RivalBlock(a + b, b, 4 * width) for a, b in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True)
        )

    def forward(self, noisy: torch.Tensor, times_B: torch.Tensor, *, text_BTE: torch.Tensor) -> torch.Tensor:
        time_BV = self.embed(times_B[:, None]) + self.read(text_BTE.mean(dim=1))
        x, skips = self.stem(noisy), []
        for level in self.downs:
            x = level(x, time_BV)
            skips.append(x)
            x = F.avg_pool3d(x, (1, 2, 2))
        x = self.middle(x, time_BV)
        for level in self.ups:
            x = level(torch.cat([F.interpolate(x, scale_factor=(1, 2, 2)), skips.pop()], dim=1), time_BV)
        return self.head(x)


def weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def rival_of(count: int) -> Rival:
    """The rival whose number of weights is nearest to `count`."""
    with torch.device("meta"):
        width = min(range(8, 400, 4), key=lambda w: abs(weights(Rival(w)) - count))
    return Rival(width)


@contextmanager
def kept_bytes(kept: list[int]) -> Iterator[None]:
    """Count what autograd saves within the block, each storage once; parameters are not counted."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    kept.append(sum(seen.values()))


def step_of(network: nn.Module, size: int, device: str) -> Callable[[], int]:
    """One training step; returns the bytes kept for the backward pass."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 4, size, size, size, generator=generator).to(device) * 2 - 1
    text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=generator).to(device)
    times = torch.tensor([0.5], device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> int:
        kept: list[int] = []
        with torch.autocast(device, torch.bfloat16), kept_bytes(kept):
            loss = (network(clean, times, text_BTE=text).float() - clean).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return kept[0]

    return step


def compare(size: int, width: int, rounds: int, device: str) -> dict[str, Any]:
    """Both networks in turn, `rounds` times after one step to warm up."""
    config = UNetConfig(width=width, text_width=TEXT_WIDTH, text_tokens=TEXT_TOKENS, middle_blocks=4)
    ours = cast(nn.Module, build_unet(config))
    networks: dict[str, nn.Module] = {"medsyn": ours, "rival": rival_of(weights(ours))}
    steps = {name: step_of(network.to(device), size, device) for name, network in networks.items()}
    kept, peaks = {name: step() for name, step in steps.items()}, {}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
            if device == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated()
    ratios = np.array(seconds["rival"]) / np.array(seconds["medsyn"])
    return {
        "size": size,
        "weights": {name: weights(network) for name, network in networks.items()},
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "kept_mib": {name: value / 2**20 for name, value in kept.items()},
        "peak_mib": {name: value / 2**20 for name, value in peaks.items()},
        "rival_over_medsyn_time": [float(ratios.min()), float(np.median(ratios)), float(ratios.max())],
        "rival_over_medsyn_kept": kept["rival"] / kept["medsyn"],
    }


def peak_of(run: Callable[[], object]) -> tuple[float, float]:
    """Peak of the tensors that `run` allocates, in MiB, and seconds; the convolution library's scratch is not in it."""
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    seconds = time.perf_counter() - start
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return float(np.cumsum(changes).max()) / 2**20, seconds


def tiles(side: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """Peak memory and time of single tiles of the paper's super-resolution network, and the 256-deep tile projected."""
    network = build_unet(SUPERRES_PAPER).to(torch.bfloat16).eval()
    caller: Any = network
    rows: list[dict[str, Any]] = []
    for depth in depths:
        tile = torch.zeros(1, 4, depth, side, side, dtype=torch.bfloat16)

        def run(tile: torch.Tensor = tile) -> None:
            with torch.no_grad():
                caller(tile, torch.tensor([0.5]), condition_BCDHW=tile)

        mib, seconds = peak_of(run)
        rows.append({"tile": [depth, side, side], "peak_mib": mib, "seconds": seconds})
    by_depth = {name: np.polyfit(depths, [row[name] for row in rows], 1) for name in ("peak_mib", "seconds")}
    return {
        "measured": rows,
        "projected_256": {name: float(np.polyval(line, 256)) for name, line in by_depth.items()},
        "volumes_mib": 6 * 4 * 256**3 * 4 / 2**20,  # about six float32 volumes of four channels beside the tile
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tile", type=int, help="side of super-resolution tiles to measure; the paper's is 72")
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--save", action="store_true", help="write a dated file to benchmarks/results")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"settings": vars(arguments), "environment": runs.environment()}
    result["step"] = [compare(size, arguments.width, arguments.rounds, arguments.device) for size in arguments.sizes]
    if arguments.tile:
        result["tiles"] = tiles(arguments.tile, tuple(arguments.depths))
    print(json.dumps(result, indent=2))
    if arguments.save:
        runs.write_json(RESULTS / f"medsyn-cost-{datetime.date.today()}.json", result)


if __name__ == "__main__":
    main()

"""Encode every sample once, before the training processes start, into shards that are read by memory map.

    <cache>/<address>/rows-00000.safetensors   one tensor per name, one row per (sample, variant)
                      rows-00000.json          rows, bytes and sha256 of the shard: written last, so it says "whole"
                      manifest.json            what the address stands for, keys, shards, a digest: written last of all

The address is a digest of encoder, corpus, keys and variants, so another autoencoder or corpus never meets stale rows.
A killed run is repeated whole: finished shards are found and kept. Memory holds one shard at a time.
Every shard is hashed once, by the process that writes it; those of a store without a sealed manifest once more.
Shapes here: N samples, V variants of each; row r is variant r % V of sample r // V.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import save
from tqdm import tqdm

from medisyn import runs
from medisyn.errors import InputError
from medisyn.parallel import map_shards
from medisyn.training.store import MANIFEST, EncodedStore, JoinedStore, is_sealed, is_whole, seal

if TYPE_CHECKING:
    from medisyn.families.base import Encoded

__all__ = ["SHARD_ROWS", "Encode", "EncodedStore", "JoinedStore", "Keyed", "precompute"]


class Keyed(Protocol):
    """What is encoded: a Sample, or anything else with a key, such as a caption."""

    @property
    def key(self) -> str: ...


Encode = Callable[[Sequence[Any]], "Encoded"]  # of what `read` returns
Vary = Callable[[Any, int], Keyed]

SHARD_ROWS = 512
_OPENED: dict[str, Encode] = {}  # one encoder per worker process, under its store's address


@dataclass(frozen=True)
class ShardTask:
    """Rows `start` to `stop` of a store. Picklable when its functions are, which worker processes need."""

    folder: Path
    number: int
    start: int
    stop: int
    variants: int
    keys: tuple[str, ...]  # of the samples that these rows come from
    first_sample: int
    read: Callable[[int], Keyed]
    open_encoder: Callable[[], Encode]
    vary: Vary | None
    batch_size: int


def precompute(
    cache: Path,
    keys: Sequence[str],
    read: Callable[[int], Keyed],
    open_encoder: Callable[[], Encode],
    *,
    encoder: str,
    corpus: str,
    variants: int = 1,
    vary: Vary | None = None,
    shard_rows: int = SHARD_ROWS,
    batch_size: int = 16,
    engine: str = "inline",
) -> EncodedStore:
    """Encode the samples `read(0)` to `read(N - 1)`, whose keys are `keys`, or open the store that holds them already.

    `encoder` is a digest of all that decides what `open_encoder()` returns: weights, text window, dtype, size.
    `vary(sample, v)` makes variant v (0 to V - 1) of a sample, for instance flipped; it must not draw from a global
    generator. Put its settings into `encoder` too.

    Raises InputError when there is nothing to encode, or a row is not finite.
    """
    if not keys or variants < 1:
        raise InputError(f"nothing to encode: {len(keys)} samples with {variants} variants each")
    if variants > 1 and vary is None:
        raise InputError(f"{variants} variants of each sample need a function that makes them")
    meaning = {"encoder": encoder, "corpus": corpus, "variants": variants, "keys": runs.digest(list(keys))}
    folder = cache / runs.digest(meaning)
    if not is_sealed(folder):
        with runs.lock(folder):
            tasks = _tasks(folder, keys, read, open_encoder, variants, vary, shard_rows, batch_size)
            shards = _encode_all(tasks, engine)
            runs.write_json(folder / MANIFEST, seal({**meaning, "sample_keys": list(keys), "shards": shards}))
    return EncodedStore.open(folder)


def _tasks(
    folder: Path,
    keys: Sequence[str],
    read: Callable[[int], Keyed],
    open_encoder: Callable[[], Encode],
    variants: int,
    vary: Vary | None,
    shard_rows: int,
    batch_size: int,
) -> list[ShardTask]:
    rows, tasks = len(keys) * variants, []
    for number, start in enumerate(range(0, rows, shard_rows)):
        stop = min(start + shard_rows, rows)
        first, last = start // variants, (stop - 1) // variants
        own = tuple(keys[first : last + 1])
        tasks.append(ShardTask(folder, number, start, stop, variants, own, first, read, open_encoder, vary, batch_size))
    return tasks


def _encode_all(tasks: Sequence[ShardTask], engine: str) -> list[dict[str, Any]]:
    shards: dict[int, dict[str, Any]] = {}
    with tqdm(total=tasks[-1].stop, desc="encoding", unit="row", disable=None) as bar:
        for number, shard in map_shards(encode_shard, tasks, engine):
            shards[number] = shard
            bar.update(shard["rows"])
    return [shards[number] for number in range(len(tasks))]


def encode_shard(task: ShardTask) -> dict[str, Any]:
    """Write one shard, unless it is there and whole. Returns its record."""
    path = task.folder / f"rows-{task.number:05d}.safetensors"
    sidecar = path.with_suffix(".json")
    if sidecar.exists():
        record: dict[str, Any] = json.loads(sidecar.read_text())
        if is_whole(path, record):
            return record
    encode = _encoder(task)
    parts: list[dict[str, torch.Tensor]] = []
    with torch.no_grad():
        for start in range(task.start, task.stop, task.batch_size):
            samples = [_sample(task, row) for row in range(start, min(start + task.batch_size, task.stop))]
            parts.append(_checked(encode(samples), samples))
    rows = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    runs.write_bytes(path, save(rows))
    record = {
        "file": path.name,
        "rows": task.stop - task.start,
        "bytes": path.stat().st_size,
        "sha256": runs.file_sha256(path),
    }
    runs.write_json(sidecar, record)
    return record


def _encoder(task: ShardTask) -> Encode:
    """In a worker process the encoder is opened once and kept; here it belongs to the caller, who may free it."""
    if multiprocessing.parent_process() is None:
        return task.open_encoder()
    if task.folder.name not in _OPENED:
        _OPENED[task.folder.name] = task.open_encoder()
    return _OPENED[task.folder.name]


def _sample(task: ShardTask, row: int) -> Keyed:
    number, variant = divmod(row, task.variants)
    sample = task.read(number)
    expected = task.keys[number - task.first_sample]
    if sample.key != expected:
        raise InputError(f"sample {number} is {sample.key}, but its key was said to be {expected}")
    return sample if task.vary is None else task.vary(sample, variant)


def _checked(encoded: Encoded, samples: Sequence[Keyed]) -> dict[str, torch.Tensor]:
    for name, tensor in encoded.items():
        if len(tensor) != len(samples):
            raise InputError(f"encode gave {len(tensor)} rows of {name} for {len(samples)} samples")
        if tensor.is_floating_point():
            finite = torch.isfinite(tensor.reshape(len(samples), -1)).all(dim=1).tolist()
            bad = [sample.key for sample, good in zip(samples, finite, strict=True) if not good]
            if bad:
                raise InputError(
                    f"encoding gave NaN or infinite {name} for sample(s) {', '.join(bad[:8])}. Leave them out of the "
                    "corpus; if all are hit, the autoencoder overflows: open it in float32 or bfloat16."
                )
    return {name: tensor.detach().cpu() for name, tensor in encoded.items()}

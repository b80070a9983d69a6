"""Features computed once: kept by file digest, extractor and preprocessing; and the stream that fills them.

Shapes here: N items (images, clips or volumes), D features.
One folder per (extractor, preprocessing): `rows.f32` (float32, D per row, appended) and `index.jsonl` (digest of the
file, row number, checksum). A row without a line in the index was cut off by a kill and is overwritten. Several
processes may use one folder: each takes its turn to write, and looks first at what the others wrote.
"""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from medisyn.errors import BusyError, InputError, ModelError, RangeError
from medisyn.evaluation.features import Extractor
from medisyn.runs import digest, lock, mend_jsonl, read_jsonl, write_json

SECONDS_TO_WAIT = 60.0  # for a turn to write; one batch takes milliseconds

Readable = tuple[str, Callable[[], np.ndarray]]  # sha256 of the file, and what reads it as the extractor takes it


class FeatureCache:
    """The features of one extractor on disk."""

    def __init__(self, folder: Path, extractor: Extractor):
        identity = {"extractor": extractor.id, "preprocessing": extractor.preprocessing, "dim": extractor.dim}
        self.folder = folder / digest(identity)
        self.dim = extractor.dim
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "extractor.json", identity)
        self._index = self._read_index()

    def _read_index(self) -> dict[str, tuple[int, int]]:
        lines = read_jsonl(self.folder / "index.jsonl")
        try:
            return {str(line["sha256"]): (int(line["row"]), int(line["crc"])) for line in lines}
        except (KeyError, TypeError, ValueError):
            raise self._damaged("its index") from None

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"feature cache {self.folder.name}: {what} is damaged. Delete that folder; the features are computed again."
        )

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._index

    def __len__(self) -> int:
        return len(self._index)

    def get(self, sha256s: Sequence[str]) -> np.ndarray:
        """The features (N, D) float32 of files that are in the cache; InputError when the cache was damaged."""
        features = np.empty((len(sha256s), self.dim), dtype=np.float32)
        if not (self.folder / "rows.f32").is_file():
            raise self._damaged("its file of features")
        with (self.folder / "rows.f32").open("rb") as stream:
            for number, sha256 in enumerate(sha256s):
                row, checksum = self._index[sha256]
                stream.seek(row * self.dim * 4)
                content = stream.read(self.dim * 4)
                if len(content) != self.dim * 4 or zlib.crc32(content) != checksum:
                    raise self._damaged(f"row {row}")
                features[number] = np.frombuffer(content, dtype="<f4")
        return features

    def add(self, sha256s: Sequence[str], features_ND: np.ndarray) -> None:
        """Append the features that are not there yet; the index follows the rows, so a kill between loses nothing."""
        path = self.folder / "rows.f32"
        with _turn_to_write(self.folder):
            path.touch()
            mend_jsonl(self.folder / "index.jsonl")
            self._index = self._read_index()
            first = max((row for row, _ in self._index.values()), default=-1) + 1
            computed = dict(zip(sha256s, features_ND, strict=True))
            new = {sha256: feature_D for sha256, feature_D in computed.items() if sha256 not in self._index}
            lines = {}
            with path.open("r+b") as stream:
                stream.seek(first * self.dim * 4)
                for row, (sha256, feature_D) in enumerate(new.items(), start=first):
                    content = np.ascontiguousarray(feature_D, dtype="<f4").tobytes()
                    stream.write(content)
                    lines[sha256] = (row, zlib.crc32(content))
            with (self.folder / "index.jsonl").open("ab") as index:
                for sha256, (row, checksum) in lines.items():
                    index.write((json.dumps({"sha256": sha256, "row": row, "crc": checksum}) + "\n").encode())
        self._index.update(lines)


@contextlib.contextmanager
def _turn_to_write(folder: Path) -> Iterator[None]:
    """Hold the folder, after waiting for another process's batch. Raises BusyError when it does not end."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(folder))
                break
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield


def extract(
    extractor: Extractor,
    images: Sequence[Readable],
    cache: FeatureCache | None = None,
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Features (N, D) float32, in the order of `images`; pixels are held for one batch only.

    What the cache holds is not computed again. `on_batch(count)` hears of progress. Raises RangeError when the
    extractor gives NaN or infinite features, ModelError when it gives others than it announced; neither is kept.
    """
    if not images:
        raise InputError("no images to extract features from")
    features = np.empty((len(images), extractor.dim), dtype=np.float32)
    known = [cache is not None and sha256 in cache for sha256, _ in images]
    if cache is not None and any(known):
        features[known] = cache.get([sha256 for (sha256, _), there in zip(images, known, strict=True) if there])
    missing = [number for number, there in enumerate(known) if not there]
    if on_batch is not None:
        on_batch(len(images) - len(missing))
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        features[batch] = _checked(extractor([images[number][1]() for number in batch]), extractor, len(batch), start)
        if cache is not None:
            cache.add([images[number][0] for number in batch], features[batch])
        if on_batch is not None:
            on_batch(len(batch))
    return features


def _checked(found_ND: np.ndarray, extractor: Extractor, count: int, start: int) -> np.ndarray:
    if found_ND.shape != (count, extractor.dim):
        raise ModelError(
            f"extractor {extractor.id} gave features of shape {found_ND.shape} for {count} items, "
            f"expected ({count}, {extractor.dim})"
        )
    bad = int((~np.isfinite(found_ND)).any(axis=1).sum())
    if bad:
        raise RangeError(
            f"extractor {extractor.id}: {bad} of the items {start + 1} to {start + count} have NaN or infinite "
            f"features. Its weights are damaged, or they overflow for these pixels."
        )
    return found_ND

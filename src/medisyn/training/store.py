"""Encoded rows on disk as a map-style list: opened by mapping files, checked by sizes and a sealed manifest.

Shapes here: N samples, V variants of each; row r is variant r % V of sample r // V.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from medisyn import runs
from medisyn.errors import InputError, ReadError

MANIFEST = "manifest.json"


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with a digest over all else that it says; the shards' own sha256 are among that."""
    return {**manifest, "digest": runs.digest(dict(manifest))}


def is_sealed(folder: Path) -> bool:
    """Whether the store has a manifest with its digest: then its shards were hashed once, when it was written."""
    path = folder / MANIFEST
    return path.exists() and "digest" in _read_manifest(path)


def is_whole(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a shard is, byte for byte, the one of its record; it reads the whole file."""
    return path.exists() and path.stat().st_size == record["bytes"] and runs.file_sha256(path) == record["sha256"]


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise _damaged(path.parent, MANIFEST)
    return content


def _damaged(folder: Path, file: str) -> ReadError:
    return ReadError(
        f"encoded rows {folder.name}/{file} are damaged or missing. Delete the folder {folder.name} and repeat the "
        "command; it encodes them again."
    )


class EncodedStore:
    """Rows on disk as a map-style list of dicts of tensors. Opening maps the files; rows are paged in when read."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self._shards = folder, manifest["shards"]
        self.keys, self.variants = list(manifest["sample_keys"]), int(manifest["variants"])
        self._shard_size = self._shards[0]["rows"]
        self._num_rows = sum(shard["rows"] for shard in self._shards)
        self._mapped: dict[int, dict[str, torch.Tensor]] = {}

    @classmethod
    def open(cls, folder: Path) -> EncodedStore:
        """Raises ReadError when the manifest is not the one that was written, or a shard is missing or cut short.

        The shards' bytes are not read: every process of a run opens the store. `verify` reads them.
        """
        manifest = _read_manifest(folder / MANIFEST)
        given = manifest.pop("digest", None)
        if given != runs.digest(manifest):
            raise _damaged(folder, MANIFEST)
        for shard in manifest["shards"]:
            path = folder / shard["file"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise _damaged(folder, shard["file"])
        return cls(folder, manifest)

    def verify(self) -> None:
        """Hash every shard. Raises ReadError for one that is not, byte for byte, what was written."""
        for shard in self._shards:
            if not is_whole(self.folder / shard["file"], shard):
                raise _damaged(self.folder, shard["file"])

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        if not 0 <= row < self._num_rows:
            raise IndexError(row)
        shard, place = divmod(row, self._shard_size)
        return {name: tensor[place] for name, tensor in self._shard(shard).items()}

    def column(self, name: str) -> torch.Tensor:
        """One name of all rows as one tensor, in memory: for small rows, such as a few numbers each."""
        return torch.cat([self._shard(number)[name] for number in range(len(self._shards))])

    def _shard(self, number: int) -> dict[str, torch.Tensor]:
        if number not in self._mapped:
            path = self.folder / self._shards[number]["file"]
            with safe_open(path, framework="pt") as file:  # tensors are views of the mapped file
                self._mapped[number] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return self._mapped[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}


class JoinedStore:
    """Rows of one store, each with the row of a second store that many of them share.

    Texts are kept so: a million images have far fewer captions, and an SDXL caption takes 0.6 MB in float32.
    `shared_keys_N` names the shared row of each sample.
    """

    def __init__(self, own: EncodedStore, shared: EncodedStore, shared_keys_N: Sequence[str]) -> None:
        """Raises InputError when a sample's shared row is not there, or the two stores have a name in common."""
        if len(shared_keys_N) != len(own.keys):
            raise InputError(f"joined rows: {len(own.keys)} samples, but {len(shared_keys_N)} keys of shared rows")
        places = {key: number for number, key in enumerate(shared.keys)}
        missing = [key for key in shared_keys_N if key not in places]
        if missing:
            raise InputError(f"joined rows: {len(missing)} of {len(own.keys)} samples have no shared row")
        twice = sorted(set(own[0]) & set(shared[0]))
        if twice:
            raise InputError(f"joined rows: both stores hold {', '.join(twice)}")
        self.own, self.shared = own, shared
        self.keys, self.variants = own.keys, own.variants
        self._places_N = [places[key] for key in shared_keys_N]

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {**self.own[row], **self.shared[self._places_N[row // self.variants]]}

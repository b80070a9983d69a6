"""Fetch a published weight file once, when the user asks for it by name, and trust it only by its sha256."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from medisyn.errors import ModelError
from medisyn.runs import file_sha256

OFFLINE = ("MEDISYN_OFFLINE", "HF_HUB_OFFLINE")
BLOCK = 1024 * 1024


def fetch(url: str, target: Path, sha256_start: str) -> Path:
    """`target`, downloaded from `url` unless it is there; it appears whole and with the right sha256, or not at all.

    Raises ModelError when the network is switched off (MEDISYN_OFFLINE, HF_HUB_OFFLINE), when it cannot be reached, and
    when the file is not the published one.
    """
    if target.is_file() and file_sha256(target).startswith(sha256_start):
        return target
    if any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in OFFLINE):
        raise ModelError(f"{target.name} is not here and the network is switched off. Fetch {url} yourself.")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream, urllib.request.urlopen(url, timeout=60) as answer:
            digest = hashlib.sha256()
            while block := answer.read(BLOCK):
                digest.update(block)
                stream.write(block)
        if not digest.hexdigest().startswith(sha256_start):
            raise ModelError(
                f"{target.name}: what {url} holds has sha256 {digest.hexdigest()[:8]}..., expected {sha256_start}...: "
                f"not the published file. Nothing was kept; give a copy that you trust with --weights."
            )
        os.replace(temporary, target)
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"{target.name} could not be fetched from {url} ({reason}). Fetch it elsewhere and give it with --weights."
        ) from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target

"""What a generated picture says of itself: a record as JSON in the PNG, and the standard PNG keywords beside it.

The record is complete: `metadata.jsonl` is nothing but these records, one per line. Pixels are left untouched.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.errors import ReadError
from medisyn.generation.grammar import effective_guidance
from medisyn.types import Request

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

NOTICE = "Synthetic image. Not for diagnostic use."
KEYWORD = "medisyn"  # of the iTXt chunk that holds the record
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

# Columns of a record that MediSyn fills in; a prompt table's columns of the same name are read over.
WRITTEN = (
    "file_name", "text", "prompt", "terms", "effective_guidance", "lost_words", "tries", "rejected_reasons",
    "model", "model_digest", "solver", "dtype", "software", "notice",
)  # fmt: skip


def software() -> str:
    """The program and its version, as written into every file."""
    return f"medisyn {importlib.metadata.version('medisyn')}"


def record_of(
    request: Request,
    model: Mapping[str, str],
    *,
    size: tuple[int, int],
    lost_words: str = "",
    rejected: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of one picture of `size` (height, width).

    `request.seed` is the seed that made it; `rejected` holds the reasons for which earlier draws were thrown away.
    `terms` are the prompts that were combined, and `effective_guidance` is the sum of their |weights| times guidance.
    `model` holds id, digest, solver and dtype. Columns are the same for every picture, so that tools can load them.
    """
    return {
        "file_name": f"{request.key}.png",
        "text": request.prompt,
        "prompt": request.prompt,
        "key": request.key,
        "seed": request.seed,
        "negative_prompt": request.negative_prompt,
        "height": size[0],
        "width": size[1],
        "steps": request.steps,
        "guidance": request.guidance,
        "terms": [{"text": text, "weight": weight} for text, weight in request.weighted_terms],
        "effective_guidance": effective_guidance(request),
        "toward_prompt": request.toward_prompt,
        "toward_seed": request.toward_seed,
        "toward_share": request.toward_share,
        "lost_words": lost_words,
        "tries": len(rejected) + 1,
        "rejected_reasons": "; ".join(rejected),
        "model": model["id"],
        "model_digest": model["digest"],
        "solver": model["solver"],
        "dtype": model["dtype"],
        "software": software(),
        "notice": NOTICE,
        **request.metadata,
    }


def png_text(record: Mapping[str, Any]) -> PngInfo:
    """The text chunks (iTXt, UTF-8) of a picture: the record, and what general viewers show."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    settings = f"{record['solver']}, {record['steps']} steps, guidance {record['guidance']}, seed {record['seed']}"
    if any(term["weight"] != 1 for term in record["terms"]) or len(record["terms"]) > 1:
        weights = " + ".join(f"{term['weight']:g}" for term in record["terms"])
        settings += f", weights {weights}, effective guidance {record['effective_guidance']}"
    chunks.add_itxt("Disclaimer", record["notice"])
    chunks.add_itxt("Description", record["prompt"])
    chunks.add_itxt("Software", record["software"])
    chunks.add_itxt("Source", f"{record['model']} ({record['model_digest']}), {settings}")
    chunks.add_itxt(KEYWORD, json.dumps(record, ensure_ascii=False, default=str))
    return chunks


def read(path: Path) -> dict[str, Any]:
    """The record of a picture that MediSyn wrote, without decoding its pixels.

    Raises ReadError when the file is no PNG, was cut short, or holds no record.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as stream, Image.open(stream, formats=["PNG"]) as image:
            text = image.info.get(KEYWORD)
            stream.seek(-len(PNG_END), 2)
            whole = stream.read() == PNG_END
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ReadError(f"{path.name}: not a readable PNG ({type(error).__name__})") from None
    if not whole:
        raise ReadError(f"{path.name}: the PNG is cut short")
    if not text:
        raise ReadError(f"{path.name}: holds no MediSyn record; it was made or saved again by another program")
    try:
        return dict(json.loads(text))
    except (json.JSONDecodeError, TypeError, ValueError):
        raise ReadError(f"{path.name}: its MediSyn record is damaged") from None

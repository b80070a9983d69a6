"""Textual-inversion files of other programs as a model folder, or as a file for another program.

Pickles are read here and in `medsyn_convert`, and nowhere else: tensors and plain containers, no code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medisyn.errors import InputError, ModelError

if TYPE_CHECKING:
    from medisyn.families.stable_diffusion.embedding_files import Embedding
    from medisyn.recipes.models import ModelPlace


@dataclass(frozen=True)
class EmbeddingsReport:
    """What was read and written, for a person."""

    lines: tuple[str, ...]

    def summary(self) -> str:
        return "\n".join(self.lines)


def convert_embeddings(
    files: Sequence[Path],
    out: Path,
    *,
    base: str | None = None,
    token: str | None = None,
    layout: str | None = None,
) -> EmbeddingsReport:
    """Read embeddings, pickles too, and write what was asked for.

    base    the model that they were trained on: `out` becomes a folder that `--model` opens, with all the tokens
    layout  "diffusers", "a1111" or "kohya": `out` becomes one file for another program
    token   the word in prompts, for a single file; None: what the file says, else its name

    Raises InputError when not exactly one of base and layout is given or names do not fit, ModelError for a file that
    is no embedding or was made for another text encoder.
    """
    from medisyn.families.stable_diffusion.embedding_files import read_embedding, write_embedding

    if (base is None) == (layout is None):
        raise InputError(
            "give either --base MODEL, to make a folder that --model opens, or --layout diffusers, a1111 or kohya, to "
            "write a file"
        )
    if len(files) > 1 and (token is not None or layout is not None):
        raise InputError(f"--token and --layout are for one file, got {len(files)}; call once per file")
    embeddings = [read_embedding(Path(file), token=token, allow_pickle=True) for file in files]
    lines = [_line(Path(file), embedding) for file, embedding in zip(files, embeddings, strict=True)]
    if layout is not None:
        written = write_embedding(embeddings[0], out, layout)
        return EmbeddingsReport((*lines, f"{written.name}: layout {layout}, {written.stat().st_size:,} bytes"))
    assert base is not None
    _write_folder(embeddings, out, base)
    return EmbeddingsReport((*lines, f"{out.name}/ is ready: give it to --model, and write the tokens in the prompt"))


def _write_folder(embeddings: Sequence[Embedding], out: Path, base: str) -> None:
    from dataclasses import asdict

    from medisyn.families.stable_diffusion import load
    from medisyn.families.stable_diffusion.embedding_files import write_embeddings
    from medisyn.families.stable_diffusion.embeddings import check_fits
    from medisyn.recipes.models import find_model

    tokens = [embedding.token for embedding in embeddings]
    twice = sorted({token for token in tokens if tokens.count(token) > 1})
    if twice:
        raise InputError(f"two files hold the token {twice[0]}; convert them one by one with --token")
    place = find_model(base)
    for embedding in embeddings:
        check_fits(embedding, _widths(place))
    above = [place.folder, *([place.adapter] if place.adapter is not None else []), *place.embeddings][-1]
    write_embeddings(embeddings, out, base=place.name, defaults=asdict(load.read_defaults(above)))


def _widths(place: ModelPlace) -> tuple[int, ...]:
    """The width of each text encoder, from its config alone."""
    configs = [place.folder / name / "config.json" for name in ("text_encoder", "text_encoder_2")]
    widths = tuple(int(json.loads(config.read_text())["hidden_size"]) for config in configs if config.is_file())
    if not widths:
        raise ModelError(f"{place.id} has no text encoder, so it can learn no words")
    return widths


def _line(file: Path, embedding: Embedding) -> str:
    widths = " + ".join(map(str, embedding.widths))
    trained = f", {embedding.step:,} steps" if embedding.step else ""
    base = f", on {embedding.base}" if embedding.base else ""
    return f"{file.name}: {embedding.token}, {embedding.num_vectors} vectors of {widths}{trained}{base}"

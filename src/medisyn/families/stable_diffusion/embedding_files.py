"""Textual-inversion embeddings as files: read in every common layout, written in those that other programs read.

Shapes here: N vectors of one token, E width of one text encoder.

layout      file            content
diffusers   .safetensors    {token: (N, E)}; `learned_embeds.safetensors` of `pipe.load_textual_inversion`
a1111       .pt             a pickle: "string_to_param" {"*": (N, E)}, "name", "step", "sd_checkpoint_name"
kohya       .safetensors    {"emb_params": (N, E)}; AUTOMATIC1111 reads it too
SDXL        .safetensors    {"clip_l": (N, E), "clip_g": (N, E)}, in every program

A pickle can run code when it is opened. It is read only on request, by `torch.load(weights_only=True)`: tensors and
plain containers, and anything else is refused before it is built.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medisyn import runs
from medisyn.errors import InputError, ModelError, closest
from medisyn.families.stable_diffusion import load

LAYOUTS = {"diffusers": ".safetensors", "a1111": ".pt", "kohya": ".safetensors"}
XL_NAMES = ("clip_l", "clip_g")  # the first and the second text encoder of SDXL
NAMELESS = ("*", "emb_params")  # keys that are no token
PICKLES = (".pt", ".bin", ".pth")
DIFFUSERS_FILE = "learned_embeds.safetensors"
EMBEDDINGS = "embeddings"  # key of medisyn.json: the names of a folder's embedding files
MAX_BYTES = 2**26  # 75 vectors for SDXL take 0.6 MB; what is far larger is a model


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors of one token, one tensor (N, E) per text encoder, as stored.

    `step` and `base` (optimiser steps, name of the model) are None where a file does not say.
    """

    token: str
    vectors: tuple[torch.Tensor, ...]
    step: int | None = None
    base: str | None = None

    @property
    def num_vectors(self) -> int:
        return len(self.vectors[0])

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(vectors.shape[1]) for vectors in self.vectors)


def as_token(name: str) -> str:
    """A name as the token that prompts use: `Prostate MRI` is `<prostate-mri>`.

    Lower case, since the tokenizer reads every prompt so and diffusers finds no token with a capital. Raises
    InputError for a name that does not begin with a letter or holds more than letters, digits, - and _.
    """
    inner = "-".join(name.strip().removeprefix("<").removesuffix(">").lower().split())
    if not re.fullmatch(r"[^\W\d_][\w-]*", inner):
        raise InputError(
            f"token {name!r} cannot be used: write a letter, then letters, digits, - or _, in angle brackets, for "
            f"example <prostate-mri>"
        )
    return f"<{inner}>"


def read_embedding(path: Path, *, token: str | None = None, allow_pickle: bool = False) -> Embedding:
    """The embedding in a file. `token` names it; None: as the file says, else after the file.

    Raises ModelError for a file that is missing, not an embedding, or a pickle where `allow_pickle` is not given or
    that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no embedding file {path.name}")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path.name} has {path.stat().st_size / 1e6:.0f} MB: that is a model, not an embedding")
    if path.suffix in PICKLES:
        if not allow_pickle:
            raise ModelError(
                f"{path.name} is a pickle, which can run code when it is opened. Convert it once, which runs none: "
                f"`medisyn convert embedding {path.name} --base MODEL --out FOLDER`"
            )
        return _parse(path, _read_pickle(path), {}, token)
    if path.suffix == ".safetensors":
        return _parse(path, *_read_safetensors(path), token)
    raise ModelError(f"{path.name} is no embedding file; allowed: .safetensors, {', '.join(PICKLES)}")


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(io.BytesIO(path.read_bytes()), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        asked = f" It asks for {named[1]}." if named else ""
        raise ModelError(
            f"{path.name} is refused: it is damaged, or holds more than tensors and plain values.{asked} Nothing in it "
            f"was run. Ask its author for a .safetensors file."
        ) from None


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path.name} is damaged: {str(error)[:80]}. Fetch it again.") from None


def _parse(path: Path, content: Any, facts: Mapping[str, str], token: str | None) -> Embedding:
    if not isinstance(content, Mapping):
        raise _unknown(path, "it holds no named tensors")
    inner = content.get("string_to_param", content)
    if not isinstance(inner, Mapping):
        raise _unknown(path, "its string_to_param holds no named tensors")
    if set(XL_NAMES) <= set(inner):
        names: tuple[str, ...] = XL_NAMES
    elif len(inner) == 1:
        names = tuple(inner)
    else:
        raise _unknown(path, f"it holds {', '.join(sorted(map(str, inner))[:6]) or 'nothing'}")
    vectors = tuple(_checked(path, name, inner[name]) for name in names)
    if len({len(tensor) for tensor in vectors}) > 1:
        raise _unknown(path, f"clip_l and clip_g hold {len(vectors[0])} and {len(vectors[1])} vectors")
    inside = facts.get("token") or (names[0] if len(names) == 1 and names[0] not in NAMELESS else path.stem)
    step, base = content.get("step", facts.get("step")), content.get("sd_checkpoint_name", facts.get("base"))
    return Embedding(
        as_token(token or str(inside)),
        vectors,
        int(step) if str(step).isdigit() else None,
        base if isinstance(base, str) else None,
    )


def _checked(path: Path, name: str, tensor: Any) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or tensor.ndim not in (1, 2) or not tensor.is_floating_point():
        raise _unknown(path, f"{name} is no table of vectors")
    vectors_NE = tensor.detach().reshape(-1, tensor.shape[-1]).contiguous()
    if not vectors_NE.numel():
        raise _unknown(path, f"{name} holds no vectors")
    if not torch.isfinite(vectors_NE).all():
        raise ModelError(f"{path.name}: {name} holds NaN or infinite numbers; its training run diverged")
    return vectors_NE


def _unknown(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path.name} is not a textual-inversion embedding: {reason}. Known are diffusers (one key, the token), "
        f"AUTOMATIC1111 (string_to_param), kohya (emb_params) and SDXL (clip_l and clip_g)."
    )


def read_embeddings(folder: Path) -> list[Embedding]:
    """The embeddings of a folder that `write_embeddings` made. Raises ModelError when a file is missing."""
    names = load.read_settings(folder).get(EMBEDDINGS, [DIFFUSERS_FILE])
    return [read_embedding(folder / Path(name).name) for name in names]


def write_embeddings(embeddings: Sequence[Embedding], folder: Path, *, base: str, defaults: Mapping[str, Any]) -> None:
    """A folder that opens as a model: its base on record and one file per token. It appears whole.

    A single token is `learned_embeds.safetensors`, which `pipe.load_textual_inversion(folder)` looks for.
    """
    with load.model_folder(folder) as target:
        files = []
        for embedding in embeddings:
            name = DIFFUSERS_FILE if len(embeddings) == 1 else f"{embedding.token[1:-1]}.safetensors"
            files.append(write_embedding(embedding, target / name).name)
        load.write_settings(target, base=base, defaults=dict(defaults), **{EMBEDDINGS: files})


def write_embedding(embedding: Embedding, path: Path, layout: str = "diffusers") -> Path:
    """Write the file whole or not at all, values as they are, and return its path.

    An embedding of two encoders is written with clip_l and clip_g, whichever .safetensors layout is asked for. Raises
    InputError for an unknown layout, another file ending, or a layout that has no place for a second encoder.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown, allowed: {', '.join(LAYOUTS)}.{closest(layout, LAYOUTS)}")
    if path.suffix != LAYOUTS[layout]:
        raise InputError(f"{path.name}: layout {layout} is written to a file that ends in {LAYOUTS[layout]}")
    if layout == "a1111":
        runs.write_bytes(path, _a1111_bytes(embedding))
    else:
        runs.write_bytes(path, _safetensors_bytes(embedding, layout))
    return path


def _safetensors_bytes(embedding: Embedding, layout: str) -> bytes:
    from safetensors.torch import save

    if len(embedding.vectors) == 2:
        names: tuple[str, ...] = XL_NAMES
    else:
        names = (embedding.token if layout == "diffusers" else "emb_params",)
    tensors = {name: own(vectors) for name, vectors in zip(names, embedding.vectors, strict=True)}
    facts = {"token": embedding.token, "step": embedding.step, "base": embedding.base}
    return save(tensors, {name: str(value) for name, value in facts.items() if value is not None})


def _a1111_bytes(embedding: Embedding) -> bytes:
    if len(embedding.vectors) != 1:
        raise InputError(
            f"{embedding.token} belongs to SDXL, whose two encoders have no place in a .pt file; write layout kohya, "
            f"which AUTOMATIC1111 reads"
        )
    content = {
        "string_to_token": {"*": 265},  # the id of "*" in CLIP's vocabulary, as AUTOMATIC1111 writes it
        "string_to_param": {"*": own(embedding.vectors[0])},
        "name": embedding.token[1:-1],
        "step": embedding.step,
        "sd_checkpoint": None,
        "sd_checkpoint_name": embedding.base,
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def own(vectors_NE: torch.Tensor) -> torch.Tensor:
    """The values on the CPU in memory of their own, so that no larger matrix is written along."""
    return vectors_NE.detach().cpu().contiguous().clone()

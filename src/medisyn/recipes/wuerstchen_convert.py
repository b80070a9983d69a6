"""Published Würstchen checkpoints as one of our model folders, or the image encoder alone.

Pickles are read here with `weights_only=True`: tensors and plain containers, no code.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.errors import InputError, ModelError
from medisyn.families.wuerstchen.config import (
    DECODER_V2,
    IMAGE_ENCODER_V2,
    VQGAN_F4,
    DecoderConfig,
    ImageEncoderConfig,
    PriorConfig,
    VQGANConfig,
)

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]

HEAD_WIDTH = 64  # of the published Stage C; the number of heads does not stand in the weights

# The entry of a checkpoint that holds each part's weights.
STAGE_A, STAGE_B, STAGE_C, IMAGE_ENCODER = "state_dict", "state_dict", "ema_state_dict", "effnet_state_dict"

# What gives a part, for a message.
OPTIONS = {
    "prior": "--stage-c model_v3_stage_c.pt, or --prior FOLDER",
    "decoder": "--stage-b model_v2_stage_b.pt, or --decoder FOLDER",
    "vqgan": "--stage-a vqgan_f4_v1_500k.pt, or --decoder FOLDER",
    "text_encoder": "--text FOLDER (CLIP ViT-bigG-14 with its tokenizer), or --prior FOLDER",
    "decoder_text_encoder": "--decoder-text FOLDER (CLIP ViT-H-14 with its tokenizer), or --decoder FOLDER",
}


@dataclass(frozen=True)
class Conversion:
    """What was converted, for a person."""

    out: Path
    lines: tuple[str, ...]

    def summary(self) -> str:
        return "\n".join((*self.lines, f"{self.out.name}/ is ready"))


def convert_wuerstchen(
    out: Path,
    *,
    stage_a: Path | None = None,
    stage_b: Path | None = None,
    stage_c: Path | None = None,
    prior: Path | None = None,
    decoder: Path | None = None,
    text: Path | None = None,
    decoder_text: Path | None = None,
    head_width: int = HEAD_WIDTH,
    decoder_config: DecoderConfig = DECODER_V2,
    vqgan_config: VQGANConfig = VQGAN_F4,
    encoder_config: ImageEncoderConfig = IMAGE_ENCODER_V2,
) -> Conversion:
    """Write one model folder with every part; with `stage_b` alone, the folder of the image encoder.

    stage_a, stage_b, stage_c   raw checkpoints: vqgan_f4_v1_500k.pt, model_v2_stage_b.pt, model_v3_stage_c.pt
    prior, decoder              folders of the published pipelines, for what is not given raw
    text, decoder_text          folders of the CLIP text encoders with their tokenizers; None: the pipelines' own

    The image encoder is in `stage_b` only: without it the model makes pictures but cannot be trained. Sizes other than
    the published ones are given by the configs; Stage C's are read from its weights. Raises InputError for a stage that
    is nowhere, ModelError for a file that is not what it should be.
    """
    others = (stage_a, stage_c, prior, decoder, text, decoder_text)
    if stage_b is not None and all(other is None for other in others):
        return _convert_image_encoder(stage_b, out, encoder_config)
    from medisyn.families.wuerstchen.layouts import check_together, pipeline_parts
    from medisyn.families.wuerstchen.model import Wuerstchen
    from medisyn.families.wuerstchen.networks import Networks

    sources = _Sources(
        {**({} if prior is None else pipeline_parts(prior)), **({} if decoder is None else pipeline_parts(decoder))}
    )
    text_encoder, words = sources.reader("text_encoder", "tokenizer", text)
    decoder_text_encoder, decoder_words = sources.reader("decoder_text_encoder", "decoder_tokenizer", decoder_text)
    encoder = None
    if stage_b is not None:
        encoder = sources.network("image_encoder", stage_b, IMAGE_ENCODER, lambda _: encoder_config)
    networks = Networks(
        prior=sources.network("prior", stage_c, STAGE_C, lambda state: prior_config(state, head_width)),
        decoder=sources.network("decoder", stage_b, STAGE_B, lambda _: decoder_config),
        vqgan=sources.network("vqgan", stage_a, STAGE_A, lambda _: vqgan_config),
        text_encoder=text_encoder,
        tokenizer=words,
        decoder_text_encoder=decoder_text_encoder,
        decoder_tokenizer=decoder_words,
        image_encoder=encoder,
    )
    check_together(networks)
    Wuerstchen(networks).save(out)
    without = "image_encoder: none, it comes with --stage-b; this model makes pictures but cannot be trained"
    return Conversion(out, (*sources.lines, *([without] if encoder is None else [])))


@dataclass(frozen=True)
class _Sources:
    """Where the parts come from; opens each, and notes what it opened."""

    given: Mapping[str, Path]  # of the published pipelines
    lines: list[str] = field(default_factory=list)

    def network(self, part: str, file: Path | None, entry: str, config: Callable[[State], Any]) -> Any:
        """From a raw checkpoint where there is one, else from its pipeline."""
        from medisyn.families.wuerstchen.parts import load_network, open_network

        if file is None:
            folder = self.place(part)
            self.lines.append(f"{part}: from {folder.parent.name}/")
            return open_network(part, folder)
        state = to_published(read_entry(file, entry))
        network = load_network(part, config(state), state)
        count = sum(parameter.numel() for parameter in network.parameters())
        self.lines.append(f"{part}: {file.name}, {count:,} weights")
        return network

    def reader(self, part: str, tokenizer: str, folder: Path | None) -> tuple[Any, Any]:
        """A text encoder and its tokenizer, both from `folder` where it is given."""
        from medisyn.families.wuerstchen.parts import open_text_encoder, open_tokenizer

        encoder = open_text_encoder(folder or self.place(part))
        return encoder, open_tokenizer(folder or self.place(tokenizer))

    def place(self, part: str) -> Path:
        if part not in self.given:
            raise InputError(f"the part {part} is nowhere: give {OPTIONS[part]}")
        return self.given[part]


def _convert_image_encoder(stage_b: Path, out: Path, config: ImageEncoderConfig) -> Conversion:
    from medisyn.families.wuerstchen.parts import load_network
    from medisyn.nn.folders import save_part
    from medisyn.runs import atomic_folder

    if out.exists():
        raise InputError(f"{out.name} exists already; give --out a new folder for the image encoder")
    network = load_network("image_encoder", config, to_published(read_entry(stage_b, IMAGE_ENCODER)))
    with atomic_folder(out) as temporary:
        save_part(network, temporary)
    count = sum(parameter.numel() for parameter in network.parameters())
    return Conversion(out, (f"image_encoder: {stage_b.name}, {count:,} weights; the other parts were not asked for",))


# ---- checkpoints


def read_entry(file: Path, entry: str) -> dict[str, torch.Tensor]:
    """The tensors by name under `entry` of a checkpoint. Raises ModelError when it is unreadable or lacks the entry."""
    import torch

    if not file.is_file():
        raise ModelError(
            f"there is no file {file.name}. Published checkpoints are in the repository dome272/wuerstchen."
        )
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # unpicklers have many; each means that the file is not what it says
        raise ModelError(
            f"{file.name} cannot be read as a checkpoint ({type(error).__name__}). Pickles that hold more than tensors "
            f"are refused, since opening them can run code."
        ) from error
    state = content.get(entry) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        held = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
        raise ModelError(f"{file.name} has no weights under {entry}; it holds {held}. Were two checkpoints swapped?")
    return {name.removeprefix("module."): value for name, value in state.items()}


def to_published(state: State) -> dict[str, torch.Tensor]:
    """The names of the published safetensors for those of a raw checkpoint.

    The raw networks hold queries, keys and values in one matrix, and call the output out_proj and the codes codebook.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        joined = re.fullmatch(r"(.*attention)\.attn\.in_proj_(weight|bias)", name)
        if joined:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{joined[1]}.to_{letter}.{joined[2]}"] = part.clone()
        else:
            name = name.replace(".attn.out_proj.", ".to_out.0.").replace(
                "vquantizer.codebook.", "vquantizer.embedding."
            )
            renamed[name] = value
    return renamed


def prior_config(state: State, head_width: int = HEAD_WIDTH) -> PriorConfig:
    """The size of a Stage C from the shapes of its weights. Raises ModelError when it is none."""
    from medisyn.families.wuerstchen.parts import refuse_cascade

    refuse_cascade("prior", state)
    needed = ("projection.weight", "cond_mapper.0.weight", "blocks.1.mapper.weight")
    for name in needed:
        if name not in state:
            raise ModelError(
                f"the checkpoint is no Stage C of Würstchen: it lacks {name}. Were two checkpoints swapped?"
            )
    width, channels = state["projection.weight"].shape[:2]
    blocks = {int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    return PriorConfig(
        c_in=channels,
        c=width,
        c_cond=state["cond_mapper.0.weight"].shape[1],
        c_r=state["blocks.1.mapper.weight"].shape[1],
        depth=(max(blocks) + 1) // 3,
        nhead=max(1, width // head_width),
    )

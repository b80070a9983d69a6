"""Published MedSyn checkpoints as one of our model folders.

Pickles are read here and nowhere else, with `weights_only=True`: tensors and plain containers, no code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisyn.errors import InputError, ModelError
from medisyn.families.medsyn.config import UP_ORDERS, Grid, MedSynConfig, MedSynDefaults, SuperResolutionConfig

if TYPE_CHECKING:
    import torch

    from medisyn.families.medsyn.networks import MedSynUNet
    from medisyn.families.medsyn.report_encoder import ReportEncoder

    State = Mapping[str, torch.Tensor]

PUBLISHED_GRID = Grid(axes="SAL")  # its arrays grow to the head, to the front and to the left
CHECK_TIME = 0.3  # enough noise to need the whole network, little enough that the right one nearly restores the scan

CLEAR_RATIO = 1.2  # the wrong order's error over the right one's; random weights give about 1

# accelerate numbers what it saves: of the base model the second is the moving average, which the scripts sample from.
BASE_FILES = ("model_1.safetensors", "pytorch_model_1.bin", "model.safetensors", "pytorch_model.bin")
SUPERRES_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Conversion:
    """What was converted, for a person."""

    out: Path
    lines: tuple[str, ...]

    def summary(self) -> str:
        return "\n".join((*self.lines, f"{self.out.name}/ is ready: give it to --model"))


def convert_medsyn(
    base: Path,
    report_encoder: Path,
    out: Path,
    *,
    superres: Path | None = None,
    tokenizer: Path | None = None,
    up_order: str | None = None,
    check: Path | None = None,
    head_width: int = 32,
    grid: Grid = PUBLISHED_GRID,
    config: MedSynConfig | None = None,
    superres_config: SuperResolutionConfig | None = None,
    defaults: MedSynDefaults | None = None,
) -> Conversion:
    """Read the three checkpoints (files or folders) and write a model folder.

    up_order  "late" or "mid"; None: decided by `check`, else "late", the order of the published inference scripts
    check     a .npy array (4, D, H, W) in [-1, 1], as the published training data: both orders restore it from noise,
              and the one with the smaller error is taken
    tokenizer the folder with vocab.txt; None: the report encoder's own

    Long reports are cut to the first tokens, as these weights were trained; `lost_words` says what is lost. Raises
    ModelError for what is missing, and InputError for a check that does not tell the orders apart.
    """
    from medisyn.families.medsyn.base_model import MedSynBase
    from medisyn.families.medsyn.cascade import MedSyn
    from medisyn.families.medsyn.superres import MedSynSuperResolution

    if up_order is not None and up_order not in UP_ORDERS:
        raise InputError(f"up_order must be one of {', '.join(UP_ORDERS)}, got {up_order!r}")
    lines: list[str] = []
    unet = _convert_unet(base, BASE_FILES, "base model", head_width, lines)
    order = _decide(unet, check, up_order, lines)
    unet.use_up_order(order)
    encoder, words = _convert_encoder(report_encoder, tokenizer, lines)
    config = config or MedSynConfig(long_reports="cut")
    model = MedSynBase(unet, encoder, words, grid, config, defaults)
    refiner = None
    if superres is not None:
        small = _convert_unet(superres, SUPERRES_FILES, "super-resolution model", head_width, lines)
        small.use_up_order(order)  # the published scripts differ in both networks at once
        refiner = MedSynSuperResolution(small, grid, superres_config, defaults)
    MedSyn(model, refiner).save(out)
    return Conversion(out, tuple(lines))


def _convert_unet(path: Path, files: tuple[str, ...], what: str, head_width: int, lines: list[str]) -> MedSynUNet:
    from medisyn.families.medsyn.networks import build_unet, infer_config, load_published

    file = find_file(path, files, what)
    everything = read_state(file)
    state = without_prefix(everything, r"init_conv0?\.weight")
    config = infer_config(state, head_width=head_width)
    network = build_unet(config)
    if network.reads_text != (what == "base model"):
        kind = "base" if network.reads_text else "super-resolution"
        raise ModelError(f"{file.name} is a {kind} network, not the {what}. Were the two files swapped?")
    num_unused = len(everything) - len(state) + len(load_published(network, state))
    count = sum(parameter.numel() for parameter in network.parameters())
    buffers = f", {num_unused} entries not needed for sampling left out" if num_unused else ""
    lines.append(f"{what}: {file.name}, {count:,} weights, width {config.width} x {config.multipliers}{buffers}")
    return network


def find_file(path: Path, files: tuple[str, ...], what: str) -> Path:
    """The checkpoint of a file, a folder, or a folder of numbered `<N>_ckpt` folders, of which the last counts."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"{what}: there is no {path.name}. Give the checkpoint's file or folder.")
    numbered = {int(found[1]): f for f in path.iterdir() if (found := re.fullmatch(r"(\d+)_ckpt", f.name))}
    folder = numbered[max(numbered)] if numbered else path
    for name in files:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{what}: {folder.name}/ holds none of {', '.join(files)}. Give the checkpoint's file.")


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """Names and tensors of a safetensors file or a pickle; of several states in one, the moving average."""
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and safetensors have many; each means that the file is not what it says
        raise ModelError(
            f"{file.name} cannot be read as a state dict ({type(error).__name__}). Pickles that hold more than tensors "
            f"are refused, since opening them can run code."
        ) from error
    for name in ("ema", "ema_model", "ema_state_dict", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ModelError(f"{file.name} holds no tensors by name; give a state dict")
    return tensors


def without_prefix(state: State, anchor: str) -> dict[str, torch.Tensor]:
    """The part of a state dict in which `anchor` (a pattern) stands, without what wrappers put before the names.

    Of several parts, one whose prefix says "ema". Raises ModelError when the anchor is nowhere.
    """
    prefixes = [found[1] for name in state if (found := re.fullmatch(rf"((?:.*\.)?){anchor}", name))]
    if not prefixes:
        raise ModelError(
            f"the checkpoint has no weight called {anchor.replace(chr(92), '')}: it is of another kind of model. "
            f"Its first names are {', '.join(sorted(state)[:3])}."
        )
    prefix = min(prefixes, key=lambda p: ("ema" not in p, len(p)))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


# ---- the order of the up blocks


def _decide(unet: MedSynUNet, check: Path | None, asked: str | None, lines: list[str]) -> str:
    if check is None:
        order = asked or UP_ORDERS[0]
        lines.append(f"order of the up blocks: {order} ({'as asked' if asked else 'assumed; --check decides it'})")
        return order
    import numpy as np
    import torch

    array = np.load(check, allow_pickle=False)
    if array.ndim != 4 or array.shape[0] != 4 or not np.isfinite(array).all() or np.abs(array).max() > 1:
        raise InputError(f"{check.name} must hold (4, D, H, W) finite numbers in [-1, 1], got shape {array.shape}")
    errors = compare_up_orders(unet, torch.from_numpy(array).float())
    best = min(errors, key=lambda order: errors[order])
    told = ", ".join(f"{order} {error:.4g}" for order, error in errors.items())
    lines.append(f"order of the up blocks: {best} (error when restoring {check.name}: {told})")
    if max(errors.values()) < CLEAR_RATIO * errors[best]:
        raise InputError(
            f"the check does not tell the orders apart ({told}): either the scan is unlike the training data, or the "
            f"weights are not trained. Give another scan, or --up-order."
        )
    if asked is not None and asked != best:
        raise InputError(f"--up-order {asked} contradicts the check, which says {best} ({told})")
    return best


def compare_up_orders(
    unet: MedSynUNet, channels_CDHW: torch.Tensor, *, time: float = CHECK_TIME, seed: int = 0
) -> dict[str, float]:
    """Mean squared error of one denoising step with the null text, for each order of the up blocks.

    Trained weights restore a scan like their training data well in the order they were trained in, and not in the
    other. The network is left in the order it was in.
    """
    import torch

    from medisyn.diffusion.cosine import cosine_alpha_sigma
    from medisyn.diffusion.schedules import add_noise

    clean = channels_CDHW[None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    times = torch.tensor([time])
    noisy = add_noise(clean, noise, *cosine_alpha_sigma(times, clean.ndim))
    before, errors = unet.config["up_order"], {}
    network: Any = unet
    for order in UP_ORDERS:
        unet.use_up_order(order)
        with torch.no_grad():
            errors[order] = float((network(noisy, times, text_BTE=unet.null_text) - clean).square().mean())
    unet.use_up_order(before)
    return errors


# ---- the report encoder


def _convert_encoder(path: Path, tokenizer: Path | None, lines: list[str]) -> tuple[ReportEncoder, Any]:
    from transformers import BertTokenizer

    from medisyn.families.medsyn.report_encoder import HEADS, ReportEncoder

    file = find_file(path, SUPERRES_FILES, "report encoder")
    state = without_prefix(read_state(file), r"bert\.embeddings\.word_embeddings\.weight")
    encoder = ReportEncoder(encoder_config(state))
    missing = list(encoder.load_state_dict(state, strict=False).missing_keys)
    body = [name for name in missing if not name.startswith(HEADS)]
    if body:
        raise ModelError(f"the report encoder lacks {len(body)} weights: {', '.join(body[:5])}")
    heads = (
        f"; without {len(missing)} weights of the pre-training heads, which sampling does not use" if missing else ""
    )
    window = encoder.config.max_position_embeddings
    lines.append(f"report encoder: {file.name}, window of {window} tokens{heads}")
    words = tokenizer or file.parent
    if not any((words / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise ModelError(
            f"{words.name}/ holds no vocab.txt: the checkpoint comes without its vocabulary. Give --tokenizer, the "
            f"folder of CXR-BERT's."
        )
    return encoder.eval(), BertTokenizer.from_pretrained(words, local_files_only=True)


def encoder_config(state: State) -> Any:
    """The size of a BERT from the shapes of its weights; heads are 64 wide, as in every published BERT."""
    from transformers import BertConfig

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ModelError(f"the report encoder lacks {name}, from which its size is read")
        return tuple(state[name].shape)

    words, width = shape("bert.embeddings.word_embeddings.weight")
    layers = {int(found[1]) for name in state if (found := re.match(r"bert\.encoder\.layer\.(\d+)\.", name))}
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=max(width // 64, 1),
        intermediate_size=shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
        max_position_embeddings=shape("bert.embeddings.position_embeddings.weight")[0],
        type_vocab_size=shape("bert.embeddings.token_type_embeddings.weight")[0],
    )
    projection = state.get("cls_projection_head.dense_to_hidden.weight")
    if projection is not None:
        config.projection_size = int(projection.shape[0])
    return config

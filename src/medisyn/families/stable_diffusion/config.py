"""Every choice of this family as frozen values: how it is trained, how it samples by default, how big it is.

No torch here: presets can be listed without loading it.
"""

from __future__ import annotations

from dataclasses import dataclass

from medisyn.diffusion.targets import check_prediction_type
from medisyn.errors import ConfigError, closest

TIMESTEP_SAMPLING = ("uniform", "logit_normal")
SOLVERS = ("dpmpp-2m", "euler", "checkpoint")
DEFAULT_STEPS = {"dpmpp-2m": 25, "euler": 50, "checkpoint": 50}  # Euler 50: MediSyn v2 section 4.2


def _check_name(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} {value!r} is unknown, allowed: {', '.join(allowed)}.{closest(value, allowed)}")


@dataclass(frozen=True, kw_only=True)
class StableDiffusionConfig:
    """How a Stable Diffusion model is trained. Defaults are MediSyn v2 section 4.2: the U-Net only, plain MSE."""

    caption_dropout: float = 0.1  # share of captions blanked, drawn per sample and step
    prediction_type: str | None = None  # None: as the checkpoint says
    zero_terminal_snr: bool | None = None  # None: as the checkpoint says
    snr_gamma: float | None = None  # min-SNR weighting (Hang et al. 2023 use 5); None: plain MSE
    timestep_sampling: str = "uniform"
    logit_mean: float = 0.0  # of logit_normal sampling
    logit_deviation: float = 1.0
    train_text_encoder: bool = False
    text_encoder_lr_scale: float = 1.0  # times the run's learning rate
    gradient_checkpointing: bool = False
    lora_rank: int = 0  # 0: full fine-tune
    lora_alpha: int | None = None  # None: equal to the rank
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # U-Net layers by the end of their name
    lora_text_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")  # if train_text_encoder

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise ConfigError(f"caption_dropout must lie in [0, 1], got {self.caption_dropout}")
        if self.prediction_type is not None:
            check_prediction_type(self.prediction_type)
        _check_name("timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLING)
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise ConfigError(f"snr_gamma must be above 0, got {self.snr_gamma}")
        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank must be 0 (full fine-tune) or more, got {self.lora_rank}")
        if self.lora_rank and not self.lora_targets:
            raise ConfigError("lora_targets is empty: name the layers to adapt, for example to_q, to_k, to_v, to_out.0")


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a request gets when it leaves steps, guidance or solver open; kept as `medisyn.json` in the model folder."""

    solver: str | None = None  # None: dpmpp-2m where the checkpoint's scheduler allows it, else the checkpoint's own
    steps: int | None = None  # None: 25 for dpmpp-2m, 50 otherwise
    guidance: float = 7.0  # MediSyn v2 section 4.2
    guidance_rescale: float = 0.0  # phi of Lin et al. 2023; they use 0.7 with zero terminal SNR
    height: int | None = None  # pixels, applied when a folder is opened; None: the U-Net's own. An adapter records
    # the size that it was trained at, since its base's U-Net may say another
    width: int | None = None

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None) or min(self.height or 1, self.width or 1) < 1:
            raise ConfigError(f"give both height and width in pixels, or neither, got {self.height} and {self.width}")
        if self.solver is not None:
            _check_name("solver", self.solver, SOLVERS)
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, got {self.steps}")
        if not self.guidance >= 0:
            raise ConfigError(f"guidance must be 0 or more, got {self.guidance}")
        if not 0 <= self.guidance_rescale <= 1:
            raise ConfigError(f"guidance_rescale must lie in [0, 1], got {self.guidance_rescale}")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The size of a model built from nothing. Tuples hold one entry per resolution level, finest first."""

    xl: bool = False  # two text encoders, pooled embedding and size conditioning
    image_size: int = 128  # pixels
    latent_channels: int = 4
    vae_widths: tuple[int, ...] = (32, 64, 96, 128)  # n levels downsample by 2**(n-1)
    vae_layers: int = 1
    latent_scale: float = 0.18215  # latents are multiplied by this before noise is added
    unet_widths: tuple[int, ...] = (128, 256, 256)
    unet_layers: int = 2
    unet_attention: tuple[bool, ...] = (True, True, True)  # cross-attention to the text at this level
    unet_heads: int = 4
    transformer_layers: int = 1
    text_width: int = 256
    text_layers: int = 4
    text_heads: int = 4
    text_window: int = 77  # tokens, with start and end
    time_id_width: int = 32  # SDXL: embedding width of each size and crop number
    norm_groups: int = 32
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085  # Stable Diffusion's own
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if len(self.unet_widths) != len(self.unet_attention):
            raise ConfigError(
                f"unet_widths has {len(self.unet_widths)} levels and unet_attention {len(self.unet_attention)}; "
                f"give one entry per level in both"
            )
        if self.image_size % self.factor:
            raise ConfigError(
                f"image_size must divide by the autoencoder's factor {self.factor}, got {self.image_size}"
            )
        for name, widths in (("vae_widths", self.vae_widths), ("unet_widths", self.unet_widths)):
            if any(width % self.norm_groups for width in widths):
                raise ConfigError(f"{name} must divide by norm_groups {self.norm_groups}, got {widths}")

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.vae_widths) - 1)


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How new words are learnt for a frozen model (textual inversion); all tokens have as many vectors."""

    tokens: tuple[str, ...] = ("<concept>",)
    num_vectors: int = 64
    init: tuple[
        str, ...
    ] = ()  # words to start from, one text per token or for all; (): from the statistics of the vocabulary
    templates: tuple[str, ...] = ("{}",)  # prompts with {} for the token; one is drawn per sample and step
    frozen_dtype: str = "float32"  # of the frozen U-Net and text encoders; bfloat16 takes half the memory
    gradient_checkpointing: bool = False
    seed: int = 0  # of the first values

    def __post_init__(self) -> None:
        if not self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise ConfigError(f"tokens must be one name or more, each once, got {', '.join(self.tokens) or 'none'}")
        if self.num_vectors < 1:
            raise ConfigError(f"num_vectors must be at least 1, got {self.num_vectors}")
        if len(self.init) not in (0, 1, len(self.tokens)):
            raise ConfigError(
                f"init holds {len(self.init)} texts for {len(self.tokens)} tokens; give one per token, one or none"
            )
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ConfigError(f"templates must hold {{}} once each, for the token; got {', '.join(self.templates)!r}")
        _check_name("frozen_dtype", self.frozen_dtype, ("float32", "bfloat16"))

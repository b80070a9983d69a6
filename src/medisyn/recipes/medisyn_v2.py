"""MediSyn v2: SDXL fine-tuned on captioned medical images, its LoRA and Stable Diffusion 1/2 siblings, and tiny twins.

Sections are those of the MediSyn v2 paper; where it is silent, the reason stands beside the value.
"""

from __future__ import annotations

import dataclasses

from medisyn.families.stable_diffusion.config import NetworkConfig, StableDiffusionConfig
from medisyn.recipes.finetune import TINY_TRAIN, PreviewConfig
from medisyn.recipes.selection import JudgeConfig
from medisyn.recipes.stable_diffusion import StableDiffusionRun
from medisyn.training.settings import TrainSettings

MEDISYN_V2 = StableDiffusionRun(
    summary="SDXL, full U-Net fine-tune with the numbers of the MediSyn v2 paper",
    base="stabilityai/stable-diffusion-xl-base-1.0",  # section 4.2
    vae="madebyollin/sdxl-vae-fp16-fix",  # section 4.2
    model=StableDiffusionConfig(
        caption_dropout=0.1,  # section 4.2: prompts empty 10 percent of the time
        gradient_checkpointing=True,  # ours: 512 pixels (section 4.1) on 80 GB; changes memory, not results
    ),
    train=TrainSettings(
        epochs=15,  # section 4.2
        batch_size=128,  # section 4.2: effective, over 4 GPUs
        micro_batch_size=8,  # ours: what fits beside AdamW's moments on 80 GB
        learning_rate=1e-5,  # section 4.2
        schedule="constant",  # section 4.2
        warmup_steps=0,  # section 4.2 names none
        weight_decay=1e-2,  # not stated: AdamW's default, as in the diffusers script that the paper started from
        max_grad_norm=1.0,  # not stated: the diffusers script's default
        precision="bf16",  # section 4.2; here as autocast over float32 weights
        ema_decay=0.0,  # section 4.2 uses none; MediSyn v1 (section 3.3) found it within 9 percent of no average
        checkpoint_every=0,  # section 4.2: at the end of every epoch
        keep_last=2,  # ours: a full checkpoint is 40 GB; the best one is kept besides
        preview_every=1000,  # ours
    ),
    judge=JudgeConfig(
        images=10_000,  # section 4.2
        against="validation",  # ours: section 4.2 takes training images, which favours copies: judge.against=train
        extractor="medical-encoder",  # ours, ships with the package; section 4.2's is "inception", a file to be given
    ),
    preview=PreviewConfig(
        pictures=8,  # ours
        steps=25,  # ours: the fast solver's; the paper samples with 50 Euler steps
        guidance=7.0,  # section 4.2
    ),
)

MEDISYN_V2_LORA = dataclasses.replace(
    MEDISYN_V2,
    summary="SDXL with a LoRA of rank 16 instead of the full U-Net, for one GPU of 24 GB",
    model=StableDiffusionConfig(
        caption_dropout=0.1,  # section 4.2
        gradient_checkpointing=True,  # ours: memory
        lora_rank=16,  # ours: not in the paper; a common rank for a domain as far from photographs as this
    ),
    train=dataclasses.replace(
        MEDISYN_V2.train,
        learning_rate=1e-4,  # ours: ten times the full fine-tune's, the diffusers LoRA script's default
        micro_batch_size=2,  # ours: fits 24 GB
        warmup_steps=100,  # ours: the adapter starts from zero
        keep_last=5,  # ours: an adapter takes little space
    ),
)

SD_FINETUNE = dataclasses.replace(
    MEDISYN_V2,
    summary="Stable Diffusion 2 at 512 pixels, full U-Net fine-tune, with MediSyn v1's moving average",
    base="stabilityai/stable-diffusion-2-base",  # ours: the base of Medical diffusion on a budget, section 2
    vae="",
    train=dataclasses.replace(
        MEDISYN_V2.train,
        ema_decay=0.9,  # per update of 100 steps; not stated: that of dome272/Wuerstchen, train_stage_C.py lines 31-33
        ema_start=1500,  # MediSyn v1 section 3.3
        ema_interval=100,  # MediSyn v1 section 3.3
    ),
)

# The tiny twins learn nothing of use: they take every turn that the real runs take, in seconds on two cores.
_TINY_NETWORK = NetworkConfig(
    xl=True,
    image_size=64,
    vae_widths=(16, 16, 16, 16),
    unet_widths=(16, 32),
    unet_attention=(False, True),
    unet_layers=1,
    unet_heads=2,
    text_width=32,
    text_layers=2,
    text_heads=2,
    time_id_width=8,
    norm_groups=8,
)

MEDISYN_V2_TINY = dataclasses.replace(
    MEDISYN_V2,
    summary="the same on a random SDXL of 0.3 million weights, in seconds on two cores: for tests and first tries",
    base="",
    vae="",
    network=_TINY_NETWORK,
    model=StableDiffusionConfig(caption_dropout=0.1),
    train=TINY_TRAIN,
    preview=PreviewConfig(pictures=4, steps=2, guidance=2.0),
    judge=JudgeConfig(images=16, steps=2, guidance=2.0),
)

SD_FINETUNE_TINY = dataclasses.replace(
    MEDISYN_V2_TINY,
    summary="the same on a random Stable Diffusion 1/2 of 0.3 million weights",
    network=dataclasses.replace(_TINY_NETWORK, xl=False),
)

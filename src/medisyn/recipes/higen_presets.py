"""MediSyn v1's video model with the paper's numbers, and its tiny twin, which runs in seconds on a CPU.

Sections are those of the MediSyn v1 paper; "code" is HiGen's published one, where the paper is silent.
"""

from __future__ import annotations

from medisyn.families.higen.config import UNET_TINY, ClipGrid
from medisyn.families.higen.settings import HiGenDefaults, HiGenSettings
from medisyn.families.stable_diffusion.config import NetworkConfig
from medisyn.recipes.higen_corpus import ClipData
from medisyn.recipes.higen_train import HiGenRun, JointFrames
from medisyn.training.settings import TrainSettings

MEDISYN_V1_VIDEO = HiGenRun(
    summary="MediSyn v1's video model: HiGen's U-Net on clips of 32 frames and on their key frames, paper's numbers",
    # Section 3.4 starts on HiGen's released weights, which are not on a hub we may name: convert them and give the
    # folder with --set base=FOLDER. What stands here is what HiGen itself started from (code: v2-1_512-ema-pruned).
    base="stabilityai/stable-diffusion-2-1-base",
    grid=ClipGrid(
        frames=32,  # section 3.2
        height=256,  # section 3.2; the corpus decides
        width=448,  # section 3.2; the corpus decides
        frames_per_second=8.0,  # code; the corpus decides where it knows
    ),
    model=HiGenSettings(
        caption_dropout=0.1,  # section 3.4
        offset_noise=0.1,  # code
        appearance_scale=1.0,  # code: similarities as they are
        text_layer="last",  # code: the penultimate layer; Stable Diffusion 2's folder has left out the one after it
        train_text_encoder=False,  # section 3.4: frozen
        gradient_checkpointing=True,  # ours: 32 frames on 80 GB
    ),
    defaults=HiGenDefaults(
        steps=50,  # code
        spacing="leading",  # code: 981, 961, ..., 1
        guidance=12.0,  # section 3.5
        guidance_rescale=0.0,  # code: none
        motion=300.0,  # section 3.5
        appearance=0.7,  # section 3.5
        overlap=8,  # ours: a quarter of a window
    ),
    data=ClipData(
        windows=1,  # section 3.2: 32 consecutive frames of each video, drawn once
    ),
    frame_encoder="dinov2:facebook/dinov2-base",  # section 3.4 says ViT-B/8; DINOv2 comes with patches of 14 alone
    frames=JointFrames(
        batch_size=512,  # section 3.4, over half of 8 GPUs
        micro_batch_size=32,  # ours
        weight=0.5,  # section 3.4: half of the GPUs
    ),
    train=TrainSettings(
        num_steps=10_053,  # section 3.4: about 3 epochs
        batch_size=32,  # section 3.4, clips over the other half
        micro_batch_size=2,  # ours: 8 clips on each GPU in four passes
        learning_rate=5e-5,  # section 3.4; code: 3e-5
        weight_decay=1e-2,  # not stated: AdamW's default
        max_grad_norm=1.0,  # not stated
        precision="bf16",  # ours: as fast as the code's fp16, and needs no loss scaling
        checkpoint_every=3351,  # table 2: one per epoch
        keep_last=3,  # table 2: all three
        preview_every=3351,  # ours
        log_every=10,  # ours
    ),
    preview_prompts=("Echocardiogram video", "Chest CT scan"),
)

MEDISYN_V1_VIDEO_TINY = HiGenRun(
    summary="the video model with clips of 4 frames and random weights: for trying the pipeline and for tests",
    network=UNET_TINY,
    image=NetworkConfig(
        image_size=64,
        latent_channels=4,
        vae_widths=(8, 8, 8, 16),
        unet_widths=(8,),
        unet_layers=1,
        unet_attention=(True,),
        unet_heads=1,
        text_width=16,
        text_layers=2,
        text_heads=2,
        text_window=32,
        norm_groups=8,
    ),
    grid=ClipGrid(frames=4),
    model=HiGenSettings(appearance_scale=100.0),
    defaults=HiGenDefaults(steps=2, guidance=2.0, overlap=1),
    frame_encoder="medical-encoder",
    frames=JointFrames(batch_size=4, micro_batch_size=4),
    train=TrainSettings(
        num_steps=6,
        batch_size=2,
        micro_batch_size=2,
        learning_rate=1e-3,
        precision="fp32",
        ema_decay=0.9,
        checkpoint_every=3,
    ),
)

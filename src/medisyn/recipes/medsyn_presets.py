"""MedSyn's three models with the paper's numbers, and tiny twins that run in seconds on a CPU.

Sections are those of the MedSyn paper; "code" is the published one, where the paper is silent.
"""

from __future__ import annotations

from medisyn.families.medsyn.config import (
    BASE_PAPER,
    BASE_TINY,
    SUPERRES_PAPER,
    SUPERRES_TINY,
    Grid,
    MedSynConfig,
    MedSynDefaults,
    SuperResolutionConfig,
)
from medisyn.recipes.medsyn_corpus import CtData
from medisyn.recipes.medsyn_reports import BertSize, MedSynReportRun, ReportObjective
from medisyn.recipes.medsyn_train import MedSynBaseRun, MedSynSuperResolutionRun
from medisyn.training.settings import TrainSettings

PREVIEW_PROMPTS = (
    "Findings: Large right pleural effusion. Heart size is normal. Impression: Large right pleural effusion.",
    "Findings: No pleural effusion. The heart is enlarged. Impression: Cardiomegaly.",
)

MEDSYN_REPORT_ENCODER = MedSynReportRun(
    summary="MedSyn's report encoder at BERT size: masked words and paired sections, with the paper's numbers",
    start="",  # section IV-A starts from CXR-BERT, which is not ours to ship: give its folder with --set start=FOLDER
    network=BertSize(
        vocabulary=30522,  # CXR-BERT's
        width=768,  # CXR-BERT's; the base model reads this width
        layers=12,  # CXR-BERT's
        heads=12,  # CXR-BERT's
    ),
    positions=2048,  # code: positions extended from 512
    objective=ReportObjective(
        masked_share=0.15,  # section IV-A
        swapped_share=0.5,  # section IV-A: half of the impressions are another report's
        pair_weight=1.0,  # not stated: both losses count alike
        window=2048,  # code: the window that the base model's texts are read with
        findings_tokens=3072,  # ours: half as much again as the window; a longer report is refused, not cut
        impression_tokens=1024,  # ours
    ),
    train=TrainSettings(
        epochs=5,  # section IV-F
        batch_size=64,  # not stated
        micro_batch_size=4,  # ours: 2048 tokens on 48 GB
        learning_rate=5e-5,  # not stated: what BERT models are usually trained on with
        schedule="cosine",  # not stated
        warmup_steps=500,  # not stated
        weight_decay=1e-2,  # not stated: AdamW's default
        max_grad_norm=1.0,  # section IV-F, of the diffusion models
        precision="bf16",  # section IV-F: mixed precision
        checkpoint_every=0,  # ours: at the end of every epoch
        log_every=10,  # ours
    ),
)

MEDSYN_BASE = MedSynBaseRun(
    summary="MedSyn's base model: CT, lobes, airways and vessels at 64 x 64 x 64 from a report, 716 million weights",
    network=BASE_PAPER,  # code: widths and blocks that give 716,215,684 weights
    grid=Grid(),  # section V-A: 256 voxels a side of the atlas, every fourth taken
    model=MedSynConfig(
        report_dropout=0.1,  # code
        long_reports="pool",  # ours: nothing of a report is lost; the code keeps the first 192 tokens ("cut")
    ),
    defaults=MedSynDefaults(
        solver="ddim",  # section IV-F
        steps=50,  # section IV-F
        superres_steps=20,  # section IV-F
        guidance=1.0,  # code: the evaluation script; the paper gives none
    ),
    data=CtData(
        finer=4,  # section V-A: volumes lie at 256 voxels a side
    ),
    train=TrainSettings(
        num_steps=40_000,  # section IV-F
        batch_size=64,  # section IV-F, over 4 GPUs
        micro_batch_size=1,  # code: one volume per GPU, accumulated
        learning_rate=1e-4,  # section IV-F
        beta1=0.9,  # section IV-F
        beta2=0.999,  # section IV-F
        weight_decay=1e-2,  # code: AdamW's default
        max_grad_norm=1.0,  # section IV-F
        precision="bf16",  # section IV-F: mixed precision; the code's fp16 needs loss scaling
        ema_decay=0.999,  # code; the paper is silent
        ema_start=10_000,  # code
        ema_interval=1,  # code
        checkpoint_every=1000,  # code
        preview_every=1000,  # ours
        log_every=10,  # ours
    ),
    preview_prompts=PREVIEW_PROMPTS,
)

MEDSYN_SUPERRES = MedSynSuperResolutionRun(
    summary="MedSyn's super-resolution from 64 to 256 voxels a side, 54 million weights; joins itself to a base model",
    network=SUPERRES_PAPER,  # code: widths and blocks that give 54,307,908 weights
    grid=Grid(),  # of the base model
    superres=SuperResolutionConfig(
        factor=4,  # section IV-B: 64 to 256
        crop=(256, 72, 72),  # code: the full depth
        condition_noise=0.4,  # code: the share of noise is uniform in [0, 0.4]
    ),
    defaults=MEDSYN_BASE.defaults,
    data=MEDSYN_BASE.data,
    train=TrainSettings(
        num_steps=40_000,  # section IV-F
        batch_size=32,  # section IV-F, over 4 GPUs
        micro_batch_size=1,  # code: one crop per GPU, accumulated
        learning_rate=1e-4,  # section IV-F
        beta1=0.9,  # section IV-F
        beta2=0.999,  # section IV-F
        weight_decay=1e-2,  # code: AdamW's default
        max_grad_norm=1.0,  # section IV-F
        precision="bf16",  # section IV-F: mixed precision
        ema_decay=0.995,  # code; the paper is silent
        ema_start=10_000,  # code
        ema_interval=10,  # code
        checkpoint_every=1000,  # code
        log_every=10,  # ours
    ),
)

# Phantoms of 32 voxels a side: the base model takes every fourth voxel, super-resolution every second.
TINY_GRID = Grid(shape=(8, 8, 8), spacing_mm=(40.0, 44.0, 44.0))
TINY_DEFAULTS = MedSynDefaults(steps=2, superres_steps=2, tile=(16, 16, 16), overlap=4)
_TINY_TRAIN = TrainSettings(
    num_steps=6,
    batch_size=4,
    micro_batch_size=2,
    learning_rate=1e-3,
    precision="fp32",
    ema_decay=0.9,
    checkpoint_every=3,
)

MEDSYN_REPORT_ENCODER_TINY = MedSynReportRun(
    summary="the report encoder in seconds on a CPU: for trying the pipeline and for tests",
    network=BertSize(vocabulary=300, width=16, layers=1, heads=2),
    positions=128,
    objective=ReportObjective(window=96, findings_tokens=768, impression_tokens=256),
    train=_TINY_TRAIN,
)
MEDSYN_BASE_TINY = MedSynBaseRun(
    summary="the base model at 8 x 8 x 8 voxels in seconds on a CPU: for trying the pipeline and for tests",
    network=BASE_TINY,
    grid=TINY_GRID,
    defaults=TINY_DEFAULTS,
    data=CtData(finer=2),
    train=_TINY_TRAIN,
)
MEDSYN_SUPERRES_TINY = MedSynSuperResolutionRun(
    summary="super-resolution from 8 to 16 voxels a side in seconds on a CPU: for trying the pipeline and for tests",
    network=SUPERRES_TINY,
    grid=TINY_GRID,
    superres=SuperResolutionConfig(factor=2, crop=(16, 8, 8)),
    defaults=TINY_DEFAULTS,
    data=CtData(finer=2),
    train=_TINY_TRAIN,
)

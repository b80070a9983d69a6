import dataclasses
import subprocess
import sys

import pytest

from medisyn.errors import ConfigError
from medisyn.recipes import PRESETS, get_preset
from medisyn.recipes.medisyn_v2 import MEDISYN_V2, MEDISYN_V2_TINY, SD_FINETUNE
from medisyn.recipes.selection import JudgeConfig
from medisyn.recipes.sources import sources_of


def test_the_numbers_of_the_paper():
    """MediSyn v2 section 4.2; moving average of MediSyn v1 section 3.3."""
    train = MEDISYN_V2.train
    assert (train.epochs, train.learning_rate, train.schedule, train.batch_size) == (15, 1e-5, "constant", 128)
    assert (train.precision, train.ema_decay, train.checkpoint_every) == ("bf16", 0.0, 0)
    assert MEDISYN_V2.base == "stabilityai/stable-diffusion-xl-base-1.0"
    assert MEDISYN_V2.vae == "madebyollin/sdxl-vae-fp16-fix"
    assert MEDISYN_V2.model.caption_dropout == 0.1
    assert (MEDISYN_V2.model.lora_rank, MEDISYN_V2.model.train_text_encoder) == (0, False)
    assert MEDISYN_V2.judge.images == 10_000
    assert (SD_FINETUNE.train.ema_start, SD_FINETUNE.train.ema_interval) == (1500, 100)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"'medisyn-v2-tyni' is unknown.*Did you mean 'medisyn-v2-tiny'\?"):
        get_preset("medisyn-v2-tyni")


def test_every_value_that_a_published_preset_chooses_has_a_source():
    for name in ("medisyn-v2", "medisyn-v2-lora", "sd-finetune"):
        preset = get_preset(name)
        sources = sources_of(preset)
        for part in ("model", "train", "judge", "preview"):
            value = getattr(preset, part)
            for field in dataclasses.fields(value):
                chosen = getattr(value, field.name)
                if chosen != field.default and f"{part}.{field.name}" != "train.num_steps":
                    assert f"{part}.{field.name}" in sources, f"{name}: {part}.{field.name}={chosen} has no source"


def test_sources_follow_what_is_taken_over():
    sources = sources_of(get_preset("medisyn-v2-lora"))
    assert sources["train.epochs"] == "section 4.2"
    assert sources["train.learning_rate"].startswith("ours: ten times")
    assert sources["model.lora_rank"].startswith("ours")
    assert sources_of(JudgeConfig()) == {}


def test_every_preset_says_in_one_line_what_it_is():
    for preset in PRESETS.values():
        assert 20 < len(preset.summary) < 120
        assert "\n" not in preset.summary


def test_presets_are_listed_without_torch():
    code = "import sys, medisyn.recipes; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"balance": "patient"}, "balance must be one of none, specialty, image_type, class"),
        ({"encode_batch_size": 0}, "encode_batch_size must be at least 1"),
        ({"base": "owner/name"}, "either base, a model to start from, or network"),
        ({"network": None}, "either base, a model to start from, or network"),
    ],
)
def test_configurations_that_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        dataclasses.replace(MEDISYN_V2_TINY, **change)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"against": "test"}, "judge.against must be one of"),
        ({"images": 1}, "at least 2"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_judges_that_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        JudgeConfig(**change)

import pytest
import torch

from build_training import settings
from medisyn.errors import ConfigError
from medisyn.training.settings import differing_keys, keys_that_forbid_resuming


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"ema_interval": 0}, "ema_interval must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more"),
        ({"num_steps": 0}, "num_steps or epochs must be above 0"),
        ({"num_steps": -5, "epochs": 1.0}, "must be 0 or more, got -5"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"ema_decay": 1.0}, "at least 0 and below 1"),
        ({"final_lr_share": 1.5}, "between 0 and 1"),
        ({"schedule": "linear"}, "schedule must be constant or cosine, got 'linear'"),
        ({"precision": "fp16"}, "fp16 is refused: it needs loss scaling"),
        ({"precision": "int8"}, "precision must be auto or bf16 or fp32"),
    ],
)
def test_values_that_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        settings(**change)


def test_epochs_become_steps_by_hand():
    # 15 epochs of 1,000 samples in batches of 128: 15 * 7.8125 = 117.19 -> 118 steps
    asked = settings(num_steps=0, epochs=15, batch_size=128, checkpoint_every=0).settled(1000)
    assert (asked.num_steps, asked.checkpoint_every) == (118, 0)
    assert settings(num_steps=7, epochs=15).settled(1000).num_steps == 7


@pytest.mark.parametrize(("abilities", "meant"), [({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")])
def test_auto_is_the_precision_that_the_processor_is_fast_in(monkeypatch, abilities, meant):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settings(precision="auto").settled(10).precision == meant
    assert [settings(precision=asked).settled(10).precision for asked in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_nested_differences_are_named():
    before = {"train": {"learning_rate": 1, "seed": 0}, "split": "train"}
    now = {"train": {"learning_rate": 2, "seed": 0}, "split": "test", "new": 1}
    assert differing_keys(before, now) == ["new", "split", "train.learning_rate"]


def test_what_may_change_on_resuming():
    before = {"train": {"num_steps": 10, "keep_last": 1, "seed": 0}}
    now = {"train": {"num_steps": 20, "keep_last": 2, "seed": 0}}
    assert keys_that_forbid_resuming(before, now, "constant") == []
    assert keys_that_forbid_resuming(before, now, "cosine") == ["train.num_steps"]

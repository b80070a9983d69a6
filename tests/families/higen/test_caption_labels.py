"""A text encoder that learns what its captions say."""

from __future__ import annotations

import math

import pytest
import torch

import build_higen as build
from medisyn.errors import InputError
from medisyn.families.higen.caption_labels import CaptionLabels
from medisyn.types import Sample

CAPTIONS = ("normal function", "reduced function", "a small heart", "a large heart, normal function")
LABELS = ((1.0, math.nan), (0.0, math.nan), (0.5, 0.0), (1.0, 1.0))


def family() -> CaptionLabels:
    parts = build.model().reader
    return CaptionLabels(parts.encoder, parts.tokenizer, layer="last", num_labels=2, seed=3)


def samples(labels=LABELS):
    return [
        Sample(str(number), None, caption, {"labels": told})
        for number, (caption, told) in enumerate(zip(CAPTIONS, labels, strict=True))
    ]


def test_the_loss_is_the_cross_entropy_of_the_known_labels():
    training = family()
    torch.nn.init.zeros_(training.head.weight)
    with torch.no_grad():
        training.head.bias.copy_(torch.tensor([0.0, 2.0]))
    rows = training.encode(samples())
    half, absent, there = math.log(2), math.log1p(math.exp(2)), math.log1p(math.exp(-2))
    found = training.loss(rows, [])
    torch.testing.assert_close(found, torch.tensor([half, half, half + absent, half + there]))


def test_it_learns_to_tell_and_every_weight_takes_part():
    training = family()
    rows = training.encode(samples())
    (group,) = training.trainable()
    training.reader.encoder.eval()  # without dropout
    optimizer = torch.optim.AdamW(group.parameters, lr=1e-2)
    for _ in range(60):
        training.loss(rows, []).mean().backward()
        assert all(weight.grad is not None for weight in group.parameters)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        told_42 = training.head(training.reader.embed(training.reader.tokens(CAPTIONS)).mean(dim=1)).sigmoid()
    assert told_42[0, 0] > 0.8 > 0.2 > told_42[1, 0]
    assert told_42[3, 1] > 0.8 > 0.2 > told_42[2, 1]


def test_what_is_refused():
    training = family()
    for labels in ((0.5,), (0.5, 1.5)):
        with pytest.raises(InputError, match=r"captions need 2 labels each, in \[0, 1\] or NaN"):
            training.encode(samples([labels] * 4))
    with pytest.raises(InputError, match="a text encoder makes no clips"):
        training.sample([build.request()])
    with pytest.raises(InputError, match="a text encoder makes no clips"):
        training.decode(torch.zeros(1))

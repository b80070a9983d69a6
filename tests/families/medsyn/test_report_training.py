"""Pre-training of the report encoder: what is masked, swapped and refused."""

from dataclasses import replace

import pytest
import torch

import build_medsyn as build
from medisyn.errors import ConfigError, InputError
from medisyn.families.medsyn.report_training import ReportPretraining, ReportTrainingConfig, _part
from medisyn.families.medsyn.sections import parse_report
from medisyn.seeding import generator_for
from medisyn.types import Request

TINY = ReportTrainingConfig(window=24, findings_tokens=40, impression_tokens=16)
IMPRESSIONS = [parse_report(report).impression for report in build.REPORTS]


def family(config: ReportTrainingConfig = TINY) -> ReportPretraining:
    encoder = build.encoder()
    encoder.eval()
    return ReportPretraining(encoder, build.tokenizer(), IMPRESSIONS, config)


def draws(count: int, step: int = 0) -> list[torch.Generator]:
    return [generator_for(0, f"{step}/{number}") for number in range(count)]


def example(training: ReportPretraining, text: str, number: int):
    report = parse_report(text)
    return training._example(
        training._ids(report.findings), training._ids(report.impression), draws(number + 1)[number]
    )


def test_half_of_the_impressions_are_another_reports():
    training, tokenizer = family(), build.tokenizer()
    own = tokenizer(IMPRESSIONS[0], add_special_tokens=False)["input_ids"]
    paired = 0
    for number in range(200):
        made = example(training, build.REPORTS[0], number)
        second = made.tokens[made.second_from : -1]
        assert (second == own) is made.paired
        paired += made.paired
    assert 72 <= paired <= 128  # 100 expected, 7 the deviation


def test_fifteen_percent_of_the_words_are_masked_and_never_a_mark():
    training, tokenizer = family(), build.tokenizer()
    marks = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    masked = words = 0
    for number in range(200):
        made = example(training, build.REPORTS[0], number)
        assert made.masked
        assert not {made.tokens[place] for place in made.masked} & marks
        masked, words = masked + len(made.masked), words + len(made.tokens) - 3
    assert 0.12 < masked / words < 0.19


def test_a_report_of_one_section_has_no_pair_and_one_word_is_masked_at_least():
    training = family()
    for text in ("No effusion.", "Impression: Normal chest."):
        assert example(training, text, 0).paired is None
    assert all(example(training, "clear", number).masked == [1] for number in range(10))


def test_long_sections_are_read_in_parts_that_cover_them():
    training = family()
    findings = list(range(10, 50))
    seen = set()
    for number in range(200):
        made = training._example(findings, [7, 8], generator_for(1, str(number)))
        assert len(made.tokens) <= TINY.window
        seen |= set(made.tokens[1 : made.second_from - 1])
    assert seen == set(findings)
    assert _part([1, 2], 2, generator_for(0, "a")) == [1, 2]


def test_the_loss_of_a_report_is_its_own():
    training = family()
    rows = training.encode_reports(list(build.REPORTS))
    together = training.loss(rows, draws(4))
    assert together.shape == (4,)
    alone = training.loss({name: row[2:3] for name, row in rows.items()}, draws(4)[2:3])
    torch.testing.assert_close(alone[0], together[2], rtol=1e-4, atol=1e-5)


def test_a_random_encoder_starts_at_the_loss_of_guessing():
    # uniform over V words, and one of two classes: log V + log 2
    training = family()
    torch.nn.init.zeros_(training.encoder.classifier.weight)
    rows = training.encode_reports([build.REPORTS[0]] * 16)
    expected = torch.log(torch.tensor(float(len(build.tokenizer())))) + torch.log(torch.tensor(2.0))
    assert training.loss(rows, draws(16)).mean().item() == pytest.approx(float(expected), rel=0.03)


def test_encode_reads_the_captions_and_every_weight_but_the_pair_heads_is_needed_for_one_section():
    training = family()
    rows = training.encode(build.chests(2))
    assert torch.equal(rows["findings"], training.encode_reports(build.REPORTS[:2])["findings"])
    (group,) = training.trainable()
    training.loss(rows, draws(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in group.parameters)


def test_training_learns_the_four_reports():
    training = family()
    rows = training.encode_reports(list(build.REPORTS))
    (group,) = training.trainable()
    training.encoder.eval()  # without dropout
    optimizer = torch.optim.AdamW(group.parameters, lr=1e-2)
    losses = []
    for step in range(60):
        loss = training.loss(rows, draws(4, step)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_what_cannot_be_trained_on_is_refused():
    training = family()
    with pytest.raises(InputError, match="report 1: it is empty, or holds nothing but headings"):
        training.encode_reports(["No effusion.", "Findings:"])
    with pytest.raises(
        InputError, match=r"report 0: its findings has 250 tokens, a row holds 40. Raise findings_tokens"
    ):
        training.encode_reports(["clear " * 250])
    with pytest.raises(InputError, match="a report encoder makes no images"):
        training.sample([Request(key="a", prompt="", seed=0)])
    with pytest.raises(InputError, match="a report encoder makes no images"):
        training.decode(torch.zeros(1))
    with pytest.raises(ConfigError, match="at least 2 different impressions to swap, got 1"):
        ReportPretraining(build.encoder(), build.tokenizer(), ["Normal.", "Normal.", ""], TINY)
    with pytest.raises(ConfigError, match="window 64 is longer than the encoder's 48 positions"):
        family(replace(TINY, window=64))
    with pytest.raises(ConfigError, match="masked_share must lie between 0 and 1, got 0"):
        ReportTrainingConfig(masked_share=0)
    with pytest.raises(ConfigError, match="window must be at least 8 tokens, got 4"):
        ReportTrainingConfig(window=4)

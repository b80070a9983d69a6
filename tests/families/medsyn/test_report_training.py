"""Pre-training of the report encoder: what is masked, swapped and refused."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

import build_medsyn as build
from medisyn.errors import ConfigError, InputError
from medisyn.families.medsyn.report_training import ReportPretraining, ReportTrainingConfig, _part
from medisyn.families.medsyn.reports import ReportReader
from medisyn.families.medsyn.sections import parse_report
from medisyn.seeding import generator_for
from medisyn.types import Request, Sample

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


LABELLED = ("No effusion.", "Large effusion.", "No effusion. Heart is normal.", "Large effusion. Heart is normal.")


def labelled(values=((0.0, 0.0), (1.0, 0.0), (0.0, float("nan")), (1.0, 0.5)), texts=LABELLED):
    """A family that learns two labels, and samples that have them."""
    training = family()
    training.encoder.begin_labels(2, seed=1)
    samples = [
        Sample(str(number), None, text, {"labels": labels})
        for number, (text, labels) in enumerate(zip(texts, values, strict=True))
    ]
    return training, samples


def test_labels_add_the_cross_entropy_of_those_that_are_known():
    training, samples = labelled()
    rows = training.encode(samples)
    torch.nn.init.zeros_(training.encoder.label_head.weight)
    with torch.no_grad():
        training.encoder.label_head.bias.copy_(torch.tensor([0.0, 2.0]))
    found = training._label_loss(rows, draws(4))
    half, low, high = math.log(2), math.log1p(math.exp(2)), math.log1p(math.exp(-2))  # of logit 0; of 2, absent; there
    expected = [half + low, half + low, half, half + (low + high) / 2]
    torch.testing.assert_close(found, torch.tensor(expected))
    plain = family()
    plain.encoder.load_state_dict(training.encoder.state_dict(), strict=False)
    without = plain.loss({name: row for name, row in rows.items() if name != "labels"}, draws(4))
    torch.testing.assert_close(training.loss(rows, draws(4)), without + found)


def test_a_denial_is_told_from_its_finding():
    training, samples = labelled()
    rows = training.encode(samples)
    (group,) = training.trainable()
    training.encoder.eval()  # without dropout
    optimizer = torch.optim.AdamW(group.parameters, lr=1e-2)
    for step in range(80):
        training._label_loss(rows, draws(4, step)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    reader = ReportReader(training.encoder, training.tokenizer, num_tokens=8, short_reports="stretch")
    pooled = reader.read(["No effusion.", "Large effusion."]).mean(dim=1)
    absent, present = training.encoder.label_head(pooled)[:, 0].sigmoid().tolist()
    assert absent < 0.2
    assert present > 0.8


def test_an_encoder_that_learnt_labels_trains_on_without_them():
    training, samples = labelled()
    training.encoder.begin_labels(0)
    assert training.encoder.config.report_labels == 0
    assert set(training.encode([replace(sample, metadata={}) for sample in samples])) == {"findings", "impression"}


def test_half_of_the_reports_lose_sentences_and_none_loses_all():
    training, tokenizer = family(), build.tokenizer()
    stop = tokenizer.convert_tokens_to_ids(".")
    ids = [11, 12, stop, 13, stop, 14, 15, stop]
    seen = Counter(tuple(training._some_sentences(ids, generator_for(2, str(number)))) for number in range(2000))
    parts = [ids[:3], ids[3:5], ids[5:]]
    kept = (chosen for size in (1, 2, 3) for chosen in itertools.combinations(parts, size))
    assert set(seen) == {tuple(itertools.chain(*chosen)) for chosen in kept}
    assert 0.58 < seen[tuple(ids)] / 2000 < 0.67  # whole: 1/2, or all kept: 1/2 times the mean of share³, 1/4
    assert training._some_sentences([11], draws(1)[0]) == [11]
    long = training._some_sentences(list(range(10, 60)), generator_for(2, "a"))
    assert len(long) == TINY.window - 2


def test_labels_that_are_missing_or_out_of_range_are_refused():
    for values in (((0.0,),), ((0.0, 1.5),), ((-1.0, float("nan")),)):
        training, samples = labelled(values, LABELLED[:1])
        with pytest.raises(InputError, match=r"report 0: it needs 2 labels in \[0, 1\] or NaN, got"):
            training.encode(samples)


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

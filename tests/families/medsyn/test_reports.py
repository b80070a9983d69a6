"""Reports as vectors: short, long and very long ones. The tiny encoder's window is 48 tokens, the base reads 12."""

import pytest
import torch

import build_medsyn as build
from medisyn.errors import ConfigError, InputError, ModelError
from medisyn.families.medsyn.report_encoder import (
    extend_positions,
    new_encoder,
    open_encoder,
    save_encoder,
)
from medisyn.families.medsyn.reports import ReportReader


def reader(*, num_tokens: int = 12, window: int = 48, **lengths: str) -> ReportReader:
    return ReportReader(build.encoder(window), build.tokenizer(), num_tokens=num_tokens, **lengths)


def test_a_short_report_gives_the_encoders_vectors_with_padding():
    reading = reader()
    ids = reading.token_ids("No effusion.")
    row = [reading.tokenizer.cls_token_id, *ids, reading.tokenizer.sep_token_id]
    padded = torch.tensor([row + [reading.tokenizer.pad_token_id] * (12 - len(row))])
    mask = torch.tensor([[1] * len(row) + [0] * (12 - len(row))])
    expected = reading.encoder.bert(input_ids=padded, attention_mask=mask).last_hidden_state[0]
    torch.testing.assert_close(reading.read(["No effusion."])[0], expected)


def test_a_short_report_is_stretched_without_padding():
    """4 vectors to 12: each three times, in order; so the mean is that of the report's own vectors."""
    reading = reader(short_reports="stretch")
    ids = reading.token_ids("No effusion")
    row = torch.tensor([[reading.tokenizer.cls_token_id, *ids, reading.tokenizer.sep_token_id]])
    own_NE = reading.encoder.bert(input_ids=row).last_hidden_state[0]
    assert len(own_NE) == 4
    torch.testing.assert_close(reading.read(["No effusion"])[0], own_NE.repeat_interleave(3, dim=0))


def test_padding_to_the_whole_window_gives_the_same_first_vectors():
    """The published features pad to 2,048 and keep 192; masked places change nothing before them."""
    short, wide = reader(), reader(num_tokens=40)
    torch.testing.assert_close(
        short.read(["No effusion."])[0], wide.read(["No effusion."])[0, :12], rtol=1e-4, atol=1e-5
    )


def test_a_report_longer_than_the_base_reads_is_averaged_and_its_end_counts():
    text = "Large right pleural effusion. Heart size is normal. Lungs are clear. Bullae in both upper lobes."
    reading = reader()
    assert len(reading.token_ids(text)) > 12
    assert reading.read([text]).shape == (1, 12, 16)
    assert not torch.allclose(reading.read([text]), reading.read([text.replace("both upper lobes", "no upper lobes")]))
    assert reading.lost_words(text) == ""


def test_cut_keeps_the_first_vectors_and_says_what_is_lost():
    text = "Large right pleural effusion. Heart size is normal. Lungs are clear."
    cutting, whole = reader(long_reports="cut"), reader(num_tokens=40, long_reports="cut")
    torch.testing.assert_close(cutting.read([text])[0], whole.read([text])[0, :12], rtol=1e-4, atol=1e-5)
    assert cutting.lost_words(text) == "are clear."
    assert cutting.lost_words("No effusion.") == ""


def test_a_report_of_ten_thousand_words_is_read_to_its_last_word():
    text = "lungs are clear . " * 2500
    reading = reader()
    first = reading.read([text])
    assert first.shape == (1, 12, 16)
    assert torch.isfinite(first).all()
    changed = reading.read([text + "bullae bullae bullae"])
    difference = (changed - first).abs().mean(dim=(0, 2))
    assert float(difference[-1]) > 10 * float(difference[0]) > 0 or float(difference[0]) == 0


def test_windows_that_overlap_give_one_vector_per_token():
    reading = reader(window=16)
    ids = reading.token_ids("lungs are clear . " * 8)
    assert len(ids) > 14
    vectors = reading._vectors(ids)
    assert vectors.shape == (len(ids) + 2, 16)
    torch.testing.assert_close(vectors[1], reading._window(ids[:14])[1])  # only the first window holds it
    torch.testing.assert_close(vectors[-2], reading._window(ids[-14:])[-2])


def test_the_order_of_sections_does_not_matter():
    reading = reader()
    forward = "Findings: No effusion. Impression: Normal."
    backward = "Impression: Normal. Findings: No effusion."
    assert torch.equal(reading.read([forward]), reading.read([backward]))


def test_a_vocabulary_from_reports_knows_their_words_and_can_spell_any_other():
    tokenizer = build.tokenizer()
    assert tokenizer.tokenize("effusion") == ["effusion"]
    assert tokenizer.tokenize("EFFUSION") == ["effusion"]
    ids = tokenizer("xq7-zyx (3.5 cm) pneumothorax", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id] == [0, 2, 4]


def test_positions_are_extended_by_repeating_the_table():
    encoder = build.encoder(window=48)
    before = encoder.bert.embeddings.position_embeddings.weight.clone()
    extend_positions(encoder, 100)
    table = encoder.bert.embeddings.position_embeddings.weight
    assert torch.equal(table[:48], before)
    assert torch.equal(table[48:96], before)
    assert table.requires_grad
    assert encoder.config.max_position_embeddings == 100
    hidden = encoder.bert(input_ids=torch.ones(1, 100, dtype=torch.long)).last_hidden_state
    assert hidden.shape == (1, 100, 16)
    with pytest.raises(ConfigError, match="window is 100 tokens already, it cannot be shortened to 50"):
        extend_positions(encoder, 50)


def test_saved_and_opened_again(tmp_path):
    encoder = build.encoder()
    extend_positions(encoder, 64)
    save_encoder(encoder, build.tokenizer(), tmp_path / "encoder")
    again, tokenizer = open_encoder(tmp_path / "encoder")
    assert again.config.max_position_embeddings == 64
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert tokenizer("No effusion.")["input_ids"] == build.tokenizer()("No effusion.")["input_ids"]


def test_any_bert_can_be_the_start_and_only_its_heads_may_be_missing(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(build.tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    bert = BertModel(config)
    bert.save_pretrained(tmp_path / "bert")
    build.tokenizer().save_pretrained(tmp_path / "bert")
    encoder, _ = open_encoder(tmp_path / "bert", from_any_bert=True)
    assert torch.equal(encoder.bert.embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)
    with pytest.raises(ModelError, match=r"lacks \d+ weights, the first is classifier.bias"):
        open_encoder(tmp_path / "bert")


def test_what_is_no_encoder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty/ is no report encoder"):
        open_encoder(tmp_path / "empty")
    save_encoder(build.encoder(), build.tokenizer(), tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="the report encoder in broken/ cannot be opened"):
        open_encoder(tmp_path / "broken")
    with pytest.raises(InputError, match="the report is empty, or holds nothing but headings"):
        reader().read(["Findings: "])
    with pytest.raises(ModelError, match=r"the tokenizer has .* words, the report encoder 30"):
        ReportReader(new_encoder(30, width=16, layers=1, heads=2, window=32), build.tokenizer(), num_tokens=8)

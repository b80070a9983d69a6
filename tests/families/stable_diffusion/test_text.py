"""The tokenizer trained on captions, and the words that a prompt loses."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import build
from medisyn.families.stable_diffusion.text import lost_words, tokenize, train_tokenizer


def test_the_tokenizer_learns_whole_words_of_the_captions():
    tokenizer = build.tokenizer()
    assert tokenizer.tokenize("Red square on black") == ["red</w>", "square</w>", "on</w>", "black</w>"]
    assert tokenizer.tokenize("zq") == ["z", "q</w>"]
    ids = tokenizer("red").input_ids
    assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
    assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1


def test_the_window_is_padded_and_cut():
    tokenizer = train_tokenizer(build.captions(), vocab_size=600, window=8)
    ids = tokenize(tokenizer, ["red", "red " * 20])
    assert ids.shape == (2, 8)
    assert ids[0, 1] == ids[1, 6] == tokenizer.convert_tokens_to_ids("red</w>")
    assert ids[1, -1] == tokenizer.eos_token_id


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30))
def test_any_text_can_be_read(text):
    tokenizer = build.tokenizer()
    ids = tokenize(tokenizer, [text])
    assert ids.shape == (1, 77)
    assert int(ids.max()) < len(tokenizer)
    assert tokenizer.unk_token_id == tokenizer.eos_token_id  # CLIP has no token of its own for the unknown


def test_lost_words_by_hand():
    # a window of 8 holds start, end and 6 words
    tokenizer = train_tokenizer(build.captions(), vocab_size=600, window=8)
    assert lost_words([tokenizer], "red red red red red red") == ""
    assert lost_words([tokenizer], "red red red red red red Blue, DISC") == "Blue, DISC"
    assert lost_words([tokenizer], "") == ""


def test_a_word_cut_in_its_middle_is_lost_whole():
    tokenizer = train_tokenizer(build.captions(), vocab_size=600, window=8)
    assert lost_words([tokenizer], "red red red red red zzz end") == "zzz end"  # z stands in the window, zz not


def test_with_two_encoders_the_longer_loss_counts():
    short = train_tokenizer(build.captions(), vocab_size=600, window=5)
    long = train_tokenizer(build.captions(), vocab_size=600, window=8)
    assert lost_words([long, short], "red square on black red") == "black red"


def test_a_family_names_the_words_beyond_its_window():
    model = build.tiny_model(build.TINY_SDXL)
    assert model.lost_words("red square") == ""
    assert model.lost_words("red " * 75 + "blue disc") == "blue disc"


def test_what_is_lost_does_not_change_the_embedding_and_what_is_kept_does():
    reader = build.tiny_model()._text
    base = "red " * 74
    a, b, c = reader.embed(reader.tokens([base + "green", base + "green blue", base + "blue"]))["text"]
    assert torch.equal(a, b)
    assert not torch.equal(a, c)

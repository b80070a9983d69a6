import copy
import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import build
from medisyn.errors import InputError, ModelError
from medisyn.families.stable_diffusion.embedding_files import Embedding, read_embedding, write_embedding
from medisyn.families.stable_diffusion.embeddings import (
    GrownEmbedding,
    collapse,
    entries_of,
    expand,
    place,
    place_trainable,
    vectors_from_statistics,
    vectors_from_words,
    with_tokens,
)
from medisyn.families.stable_diffusion.load import pipeline_of
from medisyn.families.stable_diffusion.model import StableDiffusion
from medisyn.families.stable_diffusion.networks import build_networks, scheduler_config
from medisyn.families.stable_diffusion.text import TextReader, lost_words

WIDTH = build.TINY_SD1.text_width


def networks(config=build.TINY_SD1):
    return build_networks(config, build.tokenizer(), seed=3)


def vectors(num_vectors, seed=0, width=WIDTH):
    return torch.randn(num_vectors, width, generator=torch.Generator().manual_seed(seed))


def encode(found, prompt):
    with torch.no_grad():
        reader = TextReader(found, cache_empty=False)
        return reader.embed(reader.tokens([prompt]))


def grown(embeddings, config=build.TINY_SD1):
    return place(networks(config), embeddings)


def test_a_prompt_reads_the_vectors_in_turn_at_their_places():
    learnt = vectors(3)
    found = grown([Embedding("<x>", (learnt,))])
    [tokenizer], [encoder] = found.tokenizers, found.text_encoders
    ids = TextReader(found, cache_empty=False).tokens(["red <x> disc"])["token_ids"][0]
    read = encoder.get_input_embeddings()(ids)
    words = tokenizer("red", add_special_tokens=False).input_ids
    start = 1 + len(words)
    assert torch.equal(read[start : start + 3], learnt)
    assert int(ids[start + 3 + len(tokenizer("disc", add_special_tokens=False).input_ids)]) == tokenizer.eos_token_id


def test_a_prompt_without_the_token_reads_as_before():
    before, after = (
        encode(networks(), "red disc on black"),
        encode(grown([Embedding("<x>", (vectors(3),))]), "red disc on black"),
    )
    assert torch.equal(before["text"], after["text"])


def test_training_and_sampling_read_a_token_alike():
    learnt = vectors(4)
    sampling = encode(grown([Embedding("<x>", (learnt,))]), "red <x> <x>")
    trained, [rows] = place_trainable(networks(), ["<x>"], [learnt])
    assert torch.equal(rows, learnt)
    assert torch.equal(encode(trained, "red <x> <x>")["text"], sampling["text"])


def test_only_the_rows_get_gradients():
    trained, [rows] = place_trainable(networks(), ["<x>", "<y>"], [vectors(4)])
    [encoder] = trained.text_encoders
    encoder.requires_grad_(False)
    rows.requires_grad_(True)
    reader = TextReader(trained, cache_empty=False)
    reader.embed(reader.tokens(["red <y>"]))["text"].square().sum().backward()
    assert rows.grad[:2].abs().max() == 0
    assert (rows.grad[2:].abs().sum(dim=1) > 0).all()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == [
        name for name, p in encoder.named_parameters() if p is rows
    ]


def test_grown_embedding_by_hand():
    matrix = torch.nn.Embedding.from_pretrained(torch.tensor([[1.0], [2.0], [3.0]]))
    found = GrownEmbedding(matrix, 2, torch.tensor([[7.0], [8.0]]))  # the matrix has a spare row
    assert found(torch.tensor([[0, 1, 2, 3]])).flatten().tolist() == [1, 2, 7, 8]


def test_tokenizers_of_the_model_before_are_left_alone():
    before = len(build.tokenizer())
    grown([Embedding("<x>", (vectors(2),))])
    assert len(build.tokenizer()) == before


def test_our_files_are_read_by_diffusers(tmp_path):
    """The same prompt gives the same text embedding, bit for bit, whether diffusers loads the file or we do."""
    for number, token in enumerate(("<one>", "<many-x>")):
        embedding = Embedding(token, (vectors(1 + 4 * number),))
        folder = tmp_path / str(number)
        folder.mkdir()
        write_embedding(embedding, folder / "learned_embeds.safetensors")
        base = networks()
        base = replace(base, tokenizers=tuple(copy.deepcopy(tokenizer) for tokenizer in base.tokenizers))
        from diffusers import EulerDiscreteScheduler

        pipe = pipeline_of(base, EulerDiscreteScheduler.from_config(scheduler_config(build.TINY_SD1)))
        pipe.load_textual_inversion(str(folder))
        with torch.no_grad():
            theirs, _ = pipe.encode_prompt(f"red {token} disc", "cpu", 1, False)
        assert torch.equal(encode(grown([embedding]), f"red {token} disc")["text"], theirs)


def test_diffusers_reads_our_sdxl_file(tmp_path):
    from diffusers import EulerDiscreteScheduler
    from safetensors.torch import load_file

    embedding = Embedding("<x>", (vectors(2), vectors(2, seed=1)))
    state = load_file(write_embedding(embedding, tmp_path / "x.safetensors"))
    base = networks(build.TINY_SDXL)
    base = replace(base, tokenizers=tuple(copy.deepcopy(tokenizer) for tokenizer in base.tokenizers))
    pipe = pipeline_of(base, EulerDiscreteScheduler.from_config(scheduler_config(build.TINY_SDXL)))
    pipe.load_textual_inversion(state["clip_l"], token="<x>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(
        state["clip_g"], token="<x>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
    with torch.no_grad():
        theirs, _, pooled, _ = pipe.encode_prompt("red <x>", device="cpu", do_classifier_free_guidance=False)
    ours = encode(grown([embedding], build.TINY_SDXL), "red <x>")
    assert torch.equal(ours["text"], theirs)
    assert torch.equal(ours["pooled"], pooled)


def test_old_checkpoints_pool_at_the_end_token_not_at_the_new_one():
    """eos_token_id 2, as the published SDXL and Stable Diffusion 2 encoders have it: they take the highest id."""
    right = encode(grown([Embedding("<x>", (vectors(2), vectors(2, seed=1)))], build.TINY_SDXL), "red <x>")["pooled"]
    base = networks(build.TINY_SDXL)
    for module in base.text_encoders[1].modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    base.text_encoders[1].config.eos_token_id = 2
    old = place(base, [Embedding("<x>", (vectors(2), vectors(2, seed=1)))])
    assert torch.equal(encode(old, "red <x>")["pooled"], right)
    assert old.text_encoders[1].config.eos_token_id == build.tokenizer().eos_token_id


def test_saved_as_a_whole_model_the_token_stays(tmp_path):
    """Plain diffusers samples the folder with the token, and so do we."""
    model = StableDiffusion(grown([Embedding("<x>", (vectors(3),))]))
    model.save(tmp_path / "model")
    again = StableDiffusion.from_folder(tmp_path / "model")
    assert "<x>" in again.known_tokens()
    assert torch.equal(encode(again.networks, "a <x>")["text"], encode(model.networks, "a <x>")["text"])


@pytest.fixture(scope="module")
def like_stable_diffusion_2():
    """Random weights in the shape that matters: width 1024 and a window of 77."""
    config = replace(build.TINY_SD2, text_width=1024, text_layers=1, text_heads=16)
    return build_networks(config, build.tokenizer())


@pytest.mark.parametrize("name", ["chexpert_cardiomegaly", "chexpert_healthy", "pcam_pos", "prostate_neg"])
def test_published_embeddings_load(like_stable_diffusion_2, shared_data, name):
    source = shared_data / "open" / "textual_inversion_embeddings" / f"{name}.pt"
    embedding = read_embedding(source, allow_pickle=True)
    base = replace(
        like_stable_diffusion_2, text_encoders=tuple(map(copy.deepcopy, like_stable_diffusion_2.text_encoders))
    )
    found = place(base, [embedding])
    ids = TextReader(found, cache_empty=False).tokens([f"<{name}>"])["token_ids"][0]
    read = found.text_encoders[0].get_input_embeddings()(ids)
    raw = torch.load(source, weights_only=True, map_location="cpu")["string_to_param"]["*"]
    assert torch.equal(read[1:65], raw.detach())
    assert int(ids[65]) == found.tokenizers[0].eos_token_id
    with pytest.raises(
        ModelError, match=rf"<{name}> was made for another text encoder.*1024.*this model's are {WIDTH}"
    ):
        place(networks(), [embedding])


def test_an_sdxl_embedding_does_not_fit_one_encoder():
    with pytest.raises(ModelError, match="vectors are 16 and 16 wide, this model's are 16"):
        grown([Embedding("<x>", (vectors(1), vectors(1)))])


def test_a_token_that_is_known_already_is_refused():
    with pytest.raises(InputError, match="token <x> is in the vocabulary already"):
        place(grown([Embedding("<x>", (vectors(2),))]), [Embedding("<x>", (vectors(1),))])
    with pytest.raises(InputError, match="token <x>_1 is in the vocabulary already"):
        place(grown([Embedding("<x>_1", (vectors(1),))]), [Embedding("<x>", (vectors(2),))])
    with pytest.raises(InputError, match="token <x> is in the vocabulary already"):
        grown([Embedding("<x>", (vectors(1),))] * 2)


@pytest.mark.parametrize("num_vectors", [0, 76])
def test_the_window_has_room_for_1_to_75_vectors(num_vectors):
    with pytest.raises(InputError, match=f"<x> has {num_vectors} vectors.*window of 77 tokens has room for 1 to 75"):
        with_tokens(networks(), [("<x>", num_vectors)])
    assert len(with_tokens(networks(), [("<x>", 75)])[0]) == len(build.tokenizer()) + 75


def test_prompts_are_expanded_whole_and_collapsed_again():
    [tokenizer] = _with_three()
    assert expand(tokenizer, "a <X>, <one> <x-y>") == f"a {' '.join(entries_of('<x>', 12))}, <one> <x-y> <x-y>_1"
    assert expand(tokenizer, "<x>_3") == "<x>_3"
    assert collapse(tokenizer, "<x>_10 <x>_11 red <x-y> <x-y>_1") == "<x> red <x-y>"
    assert expand(build.tokenizer(), "a <x>") == "a <x>"


@given(st.lists(st.sampled_from(["red", "<x>", "<one>", "<x-y>", "disc,", "<unknown>"]), max_size=8))
def test_collapse_undoes_expand(words):
    [tokenizer] = _with_three()
    shown = [word for word, before in zip(words, [None, *words], strict=False) if word != before or "<x" not in word]
    assert collapse(tokenizer, expand(tokenizer, " ".join(words))) == " ".join(shown)


@functools.cache
def _with_three():
    return with_tokens(networks(), [("<x>", 12), ("<one>", 1), ("<x-y>", 2)])


def test_two_large_tokens_do_not_fit_one_window_and_the_loss_is_told():
    found = grown([Embedding("<a>", (vectors(64),)), Embedding("<b>", (vectors(64),))])
    assert lost_words(found.tokenizers, "<a>") == ""
    assert lost_words(found.tokenizers, "<a> <b> red") == "<b> red"


def test_words_are_spread_over_the_vectors_as_automatic1111_does():
    base = networks()
    [tokenizer], matrix = base.tokenizers, base.text_encoders[0].get_input_embeddings().weight
    ids = tokenizer("red disc", add_special_tokens=False).input_ids
    assert len(ids) == 2
    [found] = vectors_from_words(base, "red disc", 4)
    assert torch.equal(found, matrix[[ids[0], ids[0], ids[1], ids[1]]])
    with pytest.raises(InputError, match="init ' ' holds no word"):
        vectors_from_words(base, " ", 4)


def test_statistics_follow_the_vocabulary_and_the_seed():
    base = networks(build.TINY_SDXL)
    first, second = vectors_from_statistics(base, 4000, 1, "<x>")
    matrix = base.text_encoders[0].get_input_embeddings().weight
    torch.testing.assert_close(first.mean(dim=0), matrix.mean(dim=0), atol=5 * 0.02 / 4000**0.5 * 2, rtol=0)
    torch.testing.assert_close(first.std(dim=0), matrix.std(dim=0), rtol=0.06, atol=0)  # 5 standard errors
    assert torch.equal(first, vectors_from_statistics(base, 4000, 1, "<x>")[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, vectors_from_statistics(base, 4000, 1, "<y>")[0])

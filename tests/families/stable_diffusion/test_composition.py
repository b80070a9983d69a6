"""Several prompts in one picture, and the ways between two: what the U-Net is asked, and what comes out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import build
from medisyn.families.stable_diffusion.config import GenerationDefaults
from medisyn.families.stable_diffusion.sampler import condition_call
from medisyn.seeding import generator_for
from medisyn.types import Request

BOTH = Request("a", "x", 3, steps=3, guidance=4.0, terms=(("red square", 0.75), ("blue disc", 0.5)))


def rows_seen(model, monkeypatch):
    seen = []
    forward = model.networks.unet.forward
    monkeypatch.setattr(model.networks.unet, "forward", lambda x, *a, **k: seen.append(len(x)) or forward(x, *a, **k))
    return seen


@pytest.mark.parametrize("network", [build.TINY_SD2, build.TINY_SDXL])
def test_the_first_step_is_the_formula(network):
    """One Euler step by hand: u + guidance * sum of w (c - u), each prompt read and denoised on its own."""
    model = build.tiny_model(network)
    request = replace(BOTH, negative_prompt="green cross")
    noise = torch.randn(4, 16, 16, generator=generator_for(3, "noise"))[None]
    with torch.no_grad():
        answers = {}
        timestep = torch.tensor(600)
        for text in ("green cross", "red square", "blue disc"):
            rows = dict(model._text.embed(model._text.tokens([text])))
            if model.networks.is_xl:
                rows["time_ids"] = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
            answers[text] = condition_call(model.networks.unet, noise, timestep, rows)
        from medisyn.families.stable_diffusion.conditions import conditions_for

        sizes = (32, 32, 0, 0, 32, 32) if model.networks.is_xl else None
        together = conditions_for(model._text, [request], sizes).predict(
            lambda x, text: condition_call(model.networks.unet, x, timestep, text), noise, 4.0, 0.0
        )
    u = answers["green cross"]
    expected = u + 4.0 * (0.75 * (answers["red square"] - u) + 0.5 * (answers["blue disc"] - u))
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)


def test_a_plain_prompt_is_the_same_bit_for_bit_as_one_term_of_weight_one():
    model = build.tiny_model()
    plain = Request("a", "red square", 3, steps=4)
    assert torch.equal(model.sample([plain]), model.sample([replace(plain, terms=(("red square", 1.0),))]))
    with_nothing = replace(plain, terms=(("red square", 1.0), ("blue disc", 0.0)))
    assert torch.equal(model.sample([plain]), model.sample([with_nothing]))


def test_halves_of_a_prompt_are_the_prompt_and_weights_change_the_image():
    model = build.tiny_model()
    plain = Request("a", "red square", 3, steps=4)
    halves = replace(plain, terms=(("red square", 0.5), ("red square", 0.5)))
    torch.testing.assert_close(model.sample([halves]), model.sample([plain]), rtol=1e-3, atol=1e-3)
    for other in (BOTH.terms, (("red square", 2.0),), (("red square", 1.0), ("blue disc", -0.5))):
        changed = model.sample([replace(plain, terms=other)])
        assert float((changed - model.sample([plain])).abs().max()) > 1e-2


def test_guidance_one_times_weight_two_is_guidance_two():
    model = build.tiny_model()
    twice = Request("a", "x", 3, steps=3, guidance=1.0, terms=(("red square", 2.0),))
    torch.testing.assert_close(
        model.sample([twice]),
        model.sample([Request("a", "red square", 3, steps=3, guidance=2.0)]),
        rtol=1e-3,
        atol=1e-3,
    )


def test_composed_and_plain_requests_share_a_batch_and_no_call_is_larger_than_a_plain_one(monkeypatch):
    model = build.tiny_model()
    plain = Request("b", "yellow cross", 5, steps=3, guidance=4.0)
    alone = [model.decode(model.sample([request]))[0].array_CHW.astype(int) for request in (BOTH, plain)]
    seen = rows_seen(model, monkeypatch)
    together = model.decode(model.sample([BOTH, plain]))
    assert seen == [4, 1] * 3  # two blank and three terms; at most twice the batch in one call
    for picture, other in zip(together, alone, strict=True):
        assert np.abs(picture.array_CHW - other).max() <= 1


def test_rescaling_takes_the_terms_together():
    model = build.tiny_model(build.TINY_ZERO_SNR, defaults=GenerationDefaults(guidance_rescale=0.7))
    plain = Request("a", "red cross", 3, steps=3, guidance=4.0)
    halves = replace(plain, terms=(("red cross", 0.5), ("red cross", 0.5)))
    torch.testing.assert_close(model.sample([halves]), model.sample([plain]), rtol=1e-3, atol=1e-3)


def test_the_way_between_two_prompts_ends_at_both():
    model = build.tiny_model(build.TINY_SDXL)
    start, end = Request("a", "red square", 3, steps=3), Request("a", "blue disc", 3, steps=3)
    way = [replace(start, toward_prompt="blue disc", toward_share=share) for share in (0.0, 0.5, 1.0)]
    first, middle, last = (model.sample([request]) for request in way)
    torch.testing.assert_close(first, model.sample([start]))
    torch.testing.assert_close(last, model.sample([end]), rtol=1e-4, atol=1e-4)
    assert min(float((middle - other).abs().max()) for other in (first, last)) > 1e-3
    torch.testing.assert_close(model.sample([start, *way])[2], middle[0], rtol=1e-3, atol=1e-3)  # its row of a batch


def test_the_way_between_two_seeds_ends_at_both():
    model = build.tiny_model()
    way = [Request("a", "red", 3, steps=3, toward_seed=4, toward_share=share) for share in (0.0, 0.5, 1.0)]
    first, middle, last = (model.sample([request]) for request in way)
    torch.testing.assert_close(first, model.sample([Request("a", "red", 3, steps=3)]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, model.sample([Request("a", "red", 4, steps=3)]), rtol=1e-4, atol=1e-4)
    assert min(float((middle - other).abs().max()) for other in (first, last)) > 1e-2


def test_tokens_of_many_vectors_share_no_window():
    """Two learnt tokens of 40 vectors do not fit one text window of 77; as terms each has its own."""
    from medisyn.families.stable_diffusion.embedding_files import Embedding
    from medisyn.families.stable_diffusion.embeddings import place
    from medisyn.families.stable_diffusion.model import StableDiffusion

    vectors = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    learnt = [Embedding(name, (rows,)) for name, rows in zip(("<sick>", "<healthy>"), vectors, strict=True)]
    model = StableDiffusion(place(build.tiny_model().networks, learnt))
    assert {"<sick>", "<healthy>"} <= set(model.known_tokens())
    assert model.lost_words("<sick> <healthy>")
    assert not model.lost_words("<sick>")
    plain = Request("a", "<sick>", 3, steps=3)
    mixed = [replace(plain, terms=(("<sick>", 1 - share), ("<healthy>", share))) for share in (0.0, 0.5, 1.0)]
    first, middle, last = (model.sample([request]) for request in mixed)
    assert torch.equal(first, model.sample([plain]))
    assert torch.equal(last, model.sample([replace(plain, prompt="<healthy>")]))
    assert min(float((middle - other).abs().max()) for other in (first, last)) > 1e-2

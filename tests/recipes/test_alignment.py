"""Retrieval with a tiny random CLIP folder, and folders that are refused."""

import json

import numpy as np
import pytest
import torch

import build
from medisyn.errors import InputError, ModelError
from medisyn.recipes.alignment import ClipPair, align, open_clip_folder
from medisyn.recipes.corpus_images import LabelledImage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    place = tmp_path_factory.mktemp("clip")
    tokenizer = build.tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 77,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {**small, "image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def labelled(name, caption, seed, size=32):
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size + 8, 3), dtype=np.uint8)
    return LabelledImage(f"{name}-{seed}", "", caption, name, "any / any", "p", lambda: pixels)


def test_features_are_those_of_the_model(folder):
    from transformers import CLIPModel

    pair = open_clip_folder(folder)
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    texts = ["red square on black", "blue disc on black"]
    ours = pair.encode_images([image]), pair.encode_texts(texts)
    model = CLIPModel.from_pretrained(folder).eval()
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(((image / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    tokens = build.tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(pixel_values=pixels, **tokens)
    for got, expected in zip(ours, (theirs.image_embeds, theirs.text_embeds), strict=True):
        got = got / np.linalg.norm(got, axis=1, keepdims=True)
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)  # float32
    assert pair.id.startswith("clip:")


def test_alignment_of_generated_beside_real(folder):
    captions = {"x": "red square on black", "y": "blue disc on black"}
    real = [labelled(name, captions[name], seed) for seed, name in enumerate("xxyyxy")]
    generated = [labelled(name, "something else", 50 + seed) for seed, name in enumerate("xyzx")]
    found = align(generated, real, open_clip_folder(folder))
    assert (found.generated.n, found.real.n, found.left_out) == (3, 6, 1)
    assert found.prompts == ("red square on black", "blue disc on black")


def test_a_perfect_pair_finds_every_prompt():
    means = {"x": 30, "y": 220}

    def images(batch):
        return np.array([[255 - image.mean(), image.mean()] for image in batch])

    def texts(prompts):
        return np.array([[255 - means[prompt], means[prompt]] for prompt in prompts], dtype=float)

    def flat(name, seed):
        return LabelledImage(
            f"{name}{seed}", "", name, name, "", "p", lambda: np.full((4, 4, 3), means[name], np.uint8)
        )

    found = align([flat("x", 1), flat("y", 2)], [flat("x", 3), flat("y", 4)], ClipPair(images, texts, "mean"))
    assert (found.generated.r_at_1, found.real.r_at_1) == (1.0, 1.0)


def test_folders_and_sets_that_are_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"needs config\.json and model\.safetensors"):
        open_clip_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not a JSON object"):
        open_clip_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(ModelError, match="a model of type None, allowed: clip"):
        open_clip_folder(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="does not open"):
        open_clip_folder(tmp_path)
    with pytest.raises(InputError, match="needs 2 classes that both generated and real"):
        align([labelled("x", "a", 0)], [labelled("x", "a", 1)], open_clip_folder(folder))

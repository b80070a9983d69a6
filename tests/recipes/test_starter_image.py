"""The recipe of the starter model, all five stages at tiny size."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from build_corpus import tiny_corpus
from medisyn.errors import ConfigError
from medisyn.families.stable_diffusion.config import NetworkConfig
from medisyn.recipes.models import open_model
from medisyn.recipes.starter_image import STARTER_IMAGE
from medisyn.types import Request

QUICK = {"num_steps": 3, "batch_size": 4, "micro_batch_size": 4, "warmup_steps": 0, "ema_start": 1, "preview_every": 3}


def tiny_run():
    def quick(settings):
        return dataclasses.replace(settings, **QUICK)

    network = NetworkConfig(
        image_size=32,
        latent_channels=4,
        vae_widths=(8, 16),
        unet_widths=(16, 32),
        unet_layers=1,
        unet_attention=(False, True),
        unet_heads=2,
        text_width=16,
        text_layers=1,
        text_heads=2,
        norm_groups=8,
        prediction_type="v_prediction",
        zero_terminal_snr=True,
    )
    return dataclasses.replace(
        STARTER_IMAGE,
        network=network,
        autoencoder=dataclasses.replace(
            STARTER_IMAGE.autoencoder, crop=16, train=quick(STARTER_IMAGE.autoencoder.train)
        ),
        whole=dataclasses.replace(STARTER_IMAGE.whole, crop=32, train=quick(STARTER_IMAGE.whole.train)),
        denoiser=quick(STARTER_IMAGE.denoiser),
        decoder=dataclasses.replace(STARTER_IMAGE.decoder, crop=32, train=quick(STARTER_IMAGE.decoder.train)),
        num_variants=2,
        vocabulary=600,
        preview_prompts=("red square on black",),
    )


def test_five_stages_make_a_model_folder_that_opens_and_repeating_changes_nothing(tmp_path: Path):
    corpus = tiny_corpus(tmp_path / "corpus", count=20, size=32)
    said: list[str] = []
    run, out = tiny_run(), tmp_path / "run"
    report = run.run(corpus, out, said.append)
    assert report.model == out / "model"
    assert [line for line in said if line.startswith("stage")] == [
        "stage 1 of 5: autoencoder on crops",
        "stage 2 of 5: autoencoder on whole images",
        "stage 3 of 5: denoiser and text encoder",
        "stage 4 of 5: decoder",
        "stage 5 of 5: model folder",
    ]
    model = open_model(str(out / "model"))
    request = model.resolve(Request(key="a", prompt="red square on black", seed=1))
    assert (request.steps, request.guidance) == (STARTER_IMAGE.defaults.steps, STARTER_IMAGE.defaults.guidance)
    (picture,) = model.family.decode(model.family.sample([request]))
    assert picture.array_CHW.shape == (3, 32, 32)
    assert (out / "decoder" / "previews").exists()

    digest = model.digest
    run.run(corpus, out, said.append)
    assert open_model(str(out / "model")).digest == digest


def test_the_decoder_is_the_sharpened_one_and_the_encoder_that_of_the_whole_images(tmp_path: Path):
    from safetensors.numpy import load_file

    corpus = tiny_corpus(tmp_path / "corpus", count=20, size=32)
    tiny_run().run(corpus, tmp_path / "run", lambda line: None)
    name = "diffusion_pytorch_model.safetensors"
    first = load_file(tmp_path / "run" / "whole" / "model" / name)
    final = load_file(tmp_path / "run" / "model" / "vae" / name)
    for key, value in final.items():
        same = np.array_equal(first[key].astype(np.float16), value)
        assert same == key.startswith(("encoder.", "quant_conv.")), key


def test_a_run_begins_with_the_networks_it_is_told_to_start_from(tmp_path: Path):
    corpus = tiny_corpus(tmp_path / "corpus", count=20, size=32)
    tiny_run().run(corpus, tmp_path / "first", lambda line: None)
    still = {"learning_rate": 1e-12, "ema_decay": 0.0}
    again = dataclasses.replace(tiny_run(), start_from=str(tmp_path / "first" / "model"))
    for stage in ("autoencoder", "whole", "decoder"):
        part = getattr(again, stage)
        again = dataclasses.replace(
            again, **{stage: dataclasses.replace(part, train=dataclasses.replace(part.train, **still))}
        )
    again = dataclasses.replace(again, denoiser=dataclasses.replace(again.denoiser, **still))
    again.run(corpus, tmp_path / "second", lambda line: None)
    prompt = Request(key="a", prompt="red square on black", seed=1)
    pictures = []
    for name in ("first", "second"):
        model = open_model(str(tmp_path / name / "model"))
        (picture,) = model.family.decode(model.family.sample([model.resolve(prompt)]))
        pictures.append(picture.array_CHW.astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2  # steps too small to see; the weights are rounded to float16
    wider = dataclasses.replace(again, network=dataclasses.replace(again.network, unet_widths=(16, 64)))
    with pytest.raises(ConfigError, match="Start from a model of the same network"):
        wider.prepare(corpus, tmp_path / "third", lambda line: None, processes=1)


def test_one_process_only_and_the_plan_names_the_stages(tmp_path: Path):
    corpus = tiny_corpus(tmp_path / "corpus", count=20, size=32)
    with pytest.raises(ConfigError, match="starter-image trains on one process"):
        tiny_run().prepare(corpus, tmp_path / "run", lambda line: None, processes=2)
    said: list[str] = []
    tiny_run().plan(corpus, tmp_path / "run", said.append)
    assert said[0].startswith("12 training images")
    assert [line.split(":")[0] for line in said[1:]] == ["autoencoder", "whole", "denoiser", "decoder"]
    assert not (tmp_path / "run").exists()


def test_sampling_weights_by_hand(tmp_path: Path):
    """An image type gets its count to the power of 1 - type_rarity, and its classes share that alike."""
    from medisyn.corpus.loader import Corpus

    corpus = Corpus(tiny_corpus(tmp_path / "corpus", count=20, size=32))
    rows = corpus.rows("train")
    weights = np.array(dataclasses.replace(tiny_run(), type_rarity=0.5, class_rarity=1.0)._weights(corpus))
    share = {kind: weights[[row.image_type == kind for row in rows]].sum() for kind in {row.image_type for row in rows}}
    counts = {kind: sum(row.image_type == kind for row in rows) for kind in share}
    for kind, count in counts.items():
        assert share[kind] == pytest.approx(count**0.5)
        labels = {row.labels for row in rows if row.image_type == kind}
        for label in labels:
            inside = weights[[row.image_type == kind and row.labels == label for row in rows]].sum()
            assert inside == pytest.approx(share[kind] / len(labels))
    as_they_come = np.array(dataclasses.replace(tiny_run(), type_rarity=0.0, class_rarity=0.0)._weights(corpus))
    np.testing.assert_allclose(as_they_come, 1.0)

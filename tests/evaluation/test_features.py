"""Extractors at random weights: sizes, determinism, refusal of wrong files; and the feature cache."""

import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from medisyn.errors import BusyError, ConfigError, InputError, ModelError, RangeError
from medisyn.evaluation.features import check_images, load_extractor
from medisyn.evaluation.features.cache import FeatureCache, extract
from medisyn.evaluation.features.encoder import EncoderExtractor, MedicalEncoder, load_encoder, save_network
from medisyn.evaluation.features.inception import (
    ENVIRONMENT,
    InceptionExtractor,
    InceptionV3,
    average,
    load_inception,
    resize_clean,
    resize_torch,
)
from medisyn.runs import lock


def noise(seed, height=40, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


@pytest.fixture(scope="module")
def inception():
    return seeded(InceptionV3).eval()


def test_inception_has_the_published_size(inception):
    assert sum(parameter.numel() for parameter in inception.parameters()) == 23_850_960
    assert len(inception.state_dict()) == 566


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
        ("Mixed_5b.branch_pool.conv.weight", (32, 192, 1, 1)),
        ("Mixed_6a.branch3x3.bn.running_mean", (384,)),
        ("Mixed_6b.branch7x7dbl_2.conv.weight", (128, 128, 7, 1)),
        ("Mixed_7a.branch7x7x3_2.conv.weight", (192, 192, 1, 7)),
        ("Mixed_7c.branch3x3dbl_3b.conv.weight", (384, 384, 3, 1)),
        ("fc.weight", (1008, 2048)),
    ],
)
def test_inception_has_the_published_names(inception, name, shape):
    assert tuple(inception.state_dict()[name].shape) == shape


def test_inception_averages_without_the_padding():
    # a constant map stays constant at its border; with the padding counted a corner would fall to 4 / 9
    assert torch.equal(average(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_inception_pools_the_maximum_in_the_last_block_only(inception):
    assert (inception.Mixed_7b.pool, inception.Mixed_7c.pool) == ("average", "max")


def test_inception_features(inception):
    extractor = InceptionExtractor(inception, "0" * 64)
    images = [noise(0), noise(1, 64, 64)]
    together = extractor(images)
    assert together.shape == (2, 2048)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(extractor(images), together)
    np.testing.assert_allclose(extractor(images[:1])[0], together[0], rtol=1e-4, atol=1e-6)  # float32, other batch


def test_inception_preprocessings_differ_and_are_named(inception):
    clean, bilinear = (
        InceptionExtractor(inception, "ab" * 32),
        InceptionExtractor(inception, "ab" * 32, "torch-bilinear"),
    )
    assert clean.id == bilinear.id == "inception-2015-12-05:abababab"
    assert clean.preprocessing == "squash299-clean-bicubic"
    assert bilinear.preprocessing == "squash299-torch-bilinear"
    with pytest.raises(InputError, match="one of clean, torch-bilinear, torch-antialias, tf-bilinear, got 'nearest'"):
        InceptionExtractor(inception, "", "nearest")


def test_clean_resize_neither_rounds_nor_aliases():
    ramp = np.zeros((60, 60, 3), dtype=np.uint8)
    ramp[:, :, :] = np.arange(60, dtype=np.uint8)[None, :, None]
    clean = resize_clean(ramp)
    assert clean.shape == (3, 299, 299)
    assert np.any(clean != np.rint(clean))
    # columns 0 and 255 in turn at twice the size: an antialiased filter gives the grey between, bilinear less so
    stripes = np.zeros((8, 1196, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize_clean(stripes)[:, :, 20:-20]) < 40
    assert resize_torch(stripes).shape == (3, 299, 299)


def test_clean_resize_is_pillow_s_bicubic_per_channel():
    image = noise(3, 50, 70)
    green = Image.fromarray(image[:, :, 1].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_clean(image)[1], np.clip(np.asarray(green), 0, 255))


def test_inception_without_weights_says_which_file(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(ModelError, match=r"no weight file was given.*6726825d.*MEDISYN_INCEPTION"):
        load_inception()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "gone.pth"))
    with pytest.raises(ModelError, match=r"gone\.pth does not exist.*toshas/torch-fidelity, release v0\.2\.0"):
        load_inception()


def test_inception_from_safetensors_by_environment(monkeypatch, tmp_path, inception):
    weights = {k: v for k, v in inception.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "w.safetensors")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "w.safetensors"))
    loaded = load_extractor("inception-legacy")
    assert loaded.preprocessing == "squash299-torch-bilinear"
    for name, tensor in inception.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name


def test_inception_refuses_a_pickle_that_is_not_the_published_one(tmp_path):
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"w\.pth has sha256 .* expected 6726825d"):
        load_inception(tmp_path / "w.pth")


def test_inception_refuses_another_network(tmp_path):
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="472 weights are missing and 1 unknown"):
        load_inception(tmp_path / "w.safetensors")


@pytest.fixture
def dinov2_folder(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    seeded(lambda: Dinov2Model(config)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_dinov2_takes_the_class_token(dinov2_folder):
    from transformers import Dinov2Model

    extractor = load_extractor(f"dinov2:{dinov2_folder}")
    assert extractor.dim == 16
    assert extractor.id.startswith("dinov2:")
    grey = np.full((30, 30, 3), 128, dtype=np.uint8)
    pixels = (torch.full((1, 3, 224, 224), 128 / 255) - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    network = Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.inference_mode():
        expected = network(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(extractor([grey]), expected, rtol=1e-4, atol=1e-5)  # float32


def test_dinov2_refusals(tmp_path):
    with pytest.raises(InputError, match="dinov2 needs its weights"):
        load_extractor("dinov2")
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        load_extractor(f"dinov2:{tmp_path / 'gone'}")
    (tmp_path / "pickled").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_extractor(f"dinov2:{tmp_path / 'pickled'}")


def test_dinov2_refuses_a_damaged_or_foreign_weight_file(dinov2_folder):
    save_file({"other.weight": torch.zeros(3)}, dinov2_folder / "model.safetensors")
    with pytest.raises(ModelError, match="weights are not in the file, for instance"):  # never random weights instead
        load_extractor(f"dinov2:{dinov2_folder}")
    (dinov2_folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="dinov2: the model cannot be loaded"):
        load_extractor(f"dinov2:{dinov2_folder}")


@pytest.mark.parametrize(("setting", "expected"), [("1", True), ("", False)])
def test_dinov2_by_hub_id_stays_offline_when_told(monkeypatch, setting, expected):
    from transformers import Dinov2Model

    asked = []

    def from_pretrained(source, **options):
        asked.append(options["local_files_only"])
        raise OSError("not here")

    monkeypatch.setattr(Dinov2Model, "from_pretrained", from_pretrained)
    monkeypatch.setenv("MEDISYN_OFFLINE", setting)
    with pytest.raises(ModelError, match=r"cannot be loaded \(not here\)"):
        load_extractor("dinov2:owner/name")
    assert asked == [expected]


def tiny_encoder():
    return seeded(lambda: MedicalEncoder(["a", "b"], widths=(8, 16, 32), size=32))


@pytest.fixture
def encoder_folder(tmp_path):
    network = tiny_encoder()
    save_network(network, tmp_path / "encoder", {**network.config, "trained_on": "x"})
    return tmp_path / "encoder"


def test_encoder_round_trip(encoder_folder):
    loaded = load_extractor("medical-encoder", encoder_folder)
    expected = EncoderExtractor(tiny_encoder(), loaded.id.split(":")[1])
    assert (loaded.dim, loaded.preprocessing) == (32, "squash32-pillow-bicubic")
    images = [noise(0), noise(1)]
    np.testing.assert_array_equal(loaded(images), expected(images))


def test_encoder_features_do_not_depend_on_the_batch(encoder_folder):
    extractor = load_encoder(encoder_folder)
    images = [noise(seed) for seed in range(5)]
    np.testing.assert_allclose(extractor(images)[3], extractor(images[3:4])[0], rtol=1e-4, atol=1e-6)


def test_the_full_encoder_is_small():
    network = MedicalEncoder(["a"] * 12)
    assert 500_000 < sum(parameter.numel() for parameter in network.parameters()) < 800_000
    assert network.features(torch.zeros(1, 3, 128, 128)).shape == (1, 256)


def test_every_encoder_parameter_learns():
    network = tiny_encoder()
    network(torch.rand(2, 3, 32, 32) * 255).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_encoder_refusals(tmp_path, encoder_folder):
    with pytest.raises(ModelError, match=r"model\.safetensors and config\.json not found in gone/"):
        load_encoder(tmp_path / "gone")
    config = json.loads((encoder_folder / "config.json").read_text())
    (encoder_folder / "config.json").write_text(json.dumps({**config, "widths": [8, 16, 64]}))
    with pytest.raises(ModelError, match="does not fit its config"):
        load_encoder(encoder_folder)
    (encoder_folder / "config.json").write_text(json.dumps({"classes": ["a"]}))
    with pytest.raises(ModelError, match="lacks or breaks a field"):
        load_encoder(encoder_folder)
    (encoder_folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a JSON object"):
        load_encoder(encoder_folder)


def test_unknown_extractor():
    with pytest.raises(ConfigError, match=r"extractor 'incepton' is unknown.*Did you mean 'inception'"):
        load_extractor("incepton")


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)])
def test_extractors_take_rgb_uint8_only(image):
    with pytest.raises(InputError, match="image 0 of the batch"):
        check_images([image])


class MeanExtractor:
    """Counts its calls; the feature is the mean colour."""

    id, preprocessing, dim = "mean:1", "none", 3

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(len(images))
        return np.stack([image.mean(axis=(0, 1)) for image in images]).astype(np.float32)


def readable(count, start=0):
    return [(f"sha-{seed}", lambda seed=seed: noise(seed)) for seed in range(start, start + count)]


def test_extraction_keeps_the_order_and_the_batch_size():
    extractor, heard = MeanExtractor(), []
    found = extract(extractor, readable(7), batch_size=3, on_batch=heard.append)
    assert extractor.seen == [3, 3, 1]
    assert sum(heard) == 7
    np.testing.assert_allclose(found[4], noise(4).mean(axis=(0, 1)), rtol=1e-6)


def test_the_cache_is_filled_once_and_outlives_the_process(tmp_path):
    extractor = MeanExtractor()
    first = extract(extractor, readable(4), FeatureCache(tmp_path, extractor))
    again = MeanExtractor()
    cache = FeatureCache(tmp_path, again)
    both = extract(again, [*readable(2, start=3), *readable(3)], cache)  # 3 and 0, 1, 2 are known, 4 is new
    assert again.seen == [1]
    np.testing.assert_array_equal(both[[2, 3, 4, 0]], first)
    assert len(cache) == 5


def test_another_extractor_or_preprocessing_has_a_cache_of_its_own(tmp_path):
    ours, theirs = MeanExtractor(), MeanExtractor()
    theirs.preprocessing = "other"
    extract(ours, readable(2), FeatureCache(tmp_path, ours))
    extract(theirs, readable(2), FeatureCache(tmp_path, theirs))
    assert theirs.seen == [2]


def test_a_row_without_index_line_is_written_again(tmp_path):
    extractor = MeanExtractor()
    cache = FeatureCache(tmp_path, extractor)
    first = extract(extractor, readable(3), cache)
    index = cache.folder / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-10])  # killed while the last line was written
    again = MeanExtractor()
    np.testing.assert_array_equal(extract(again, readable(3), FeatureCache(tmp_path, again)), first)
    assert again.seen == [1]


def test_two_processes_share_one_cache(tmp_path):
    """Both opened it empty; the second to write must neither overwrite the first one's rows nor repeat them."""
    extractor = MeanExtractor()
    ours, theirs = FeatureCache(tmp_path, extractor), FeatureCache(tmp_path, extractor)
    first = extract(extractor, readable(3), ours)
    second = extract(extractor, readable(3, start=2), theirs)  # image 2 is in both
    both = FeatureCache(tmp_path, extractor)
    assert len(both) == 5
    np.testing.assert_array_equal(both.get([f"sha-{n}" for n in range(3)]), first)
    np.testing.assert_array_equal(both.get([f"sha-{n}" for n in range(2, 5)]), second)
    assert (both.folder / "rows.f32").stat().st_size == 5 * 3 * 4


def test_a_cache_that_stays_taken_is_an_error(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, MeanExtractor())
    monkeypatch.setattr("medisyn.evaluation.features.cache.SECONDS_TO_WAIT", 0.05)
    with lock(cache.folder), pytest.raises(BusyError, match="another process is writing"):
        extract(MeanExtractor(), readable(1), cache)


def test_a_damaged_cache_is_named(tmp_path):
    extractor = MeanExtractor()
    cache = FeatureCache(tmp_path, extractor)
    extract(extractor, readable(3), cache)
    rows = bytearray((cache.folder / "rows.f32").read_bytes())
    rows[14] ^= 1
    (cache.folder / "rows.f32").write_bytes(rows)
    with pytest.raises(InputError, match=r"row 1 is damaged\. Delete that folder"):
        extract(extractor, readable(3), FeatureCache(tmp_path, extractor))


def test_nothing_to_extract():
    with pytest.raises(InputError, match="no images to extract features from"):
        extract(MeanExtractor(), [])


class BadExtractor(MeanExtractor):
    def __init__(self, features):
        super().__init__()
        self.features = features

    def __call__(self, images):
        return self.features


def test_nan_features_are_named_and_not_kept(tmp_path):
    broken = BadExtractor(np.array([[1, 2, 3], [1, np.nan, 3]], np.float32))
    cache = FeatureCache(tmp_path, broken)
    with pytest.raises(RangeError, match="extractor mean:1: 1 of the items 1 to 2 have NaN"):
        extract(broken, readable(2), cache)
    assert len(FeatureCache(tmp_path, broken)) == 0


def test_an_extractor_that_gives_another_width_is_refused():
    with pytest.raises(ModelError, match=r"features of shape \(2, 4\) for 2 items, expected \(2, 3\)"):
        extract(BadExtractor(np.zeros((2, 4), np.float32)), readable(2))


def test_a_cache_that_lost_its_features_or_has_a_foreign_index_is_named(tmp_path):
    extractor = MeanExtractor()
    cache = FeatureCache(tmp_path, extractor)
    extract(extractor, readable(3), cache)
    (cache.folder / "rows.f32").unlink()
    with pytest.raises(InputError, match="its file of features is damaged"):
        FeatureCache(tmp_path, extractor).get(["sha-0"])
    (cache.folder / "index.jsonl").write_text('{"sha256": "sha-0", "row": "x"}\n')
    with pytest.raises(InputError, match=r"its index is damaged\. Delete that folder"):
        FeatureCache(tmp_path, extractor)


def test_extraction_holds_one_batch_of_pixels():
    alive, most = set(), 0

    def read(seed):
        picture = noise(seed)
        alive.add(seed)
        weakref.finalize(picture, alive.discard, seed)
        return picture

    class Counting(MeanExtractor):
        def __call__(self, images):
            nonlocal most
            most = max(most, len(alive))
            return super().__call__(images)

    extract(Counting(), [(str(seed), lambda seed=seed: read(seed)) for seed in range(60)], batch_size=5)
    assert most <= 10  # the batch, and at most the one before, for 60 images as for 6,000

"""CLIP, BiomedCLIP, I3D, MedicalNet and the slice-wise extractors at tiny size with random weights."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from medisyn.errors import ConfigError, InputError, ModelError, RangeError
from medisyn.evaluation.features import by_slices, check_clips, check_volumes, load_extractor
from medisyn.evaluation.features.biomedclip import load_biomedclip
from medisyn.evaluation.features.by_slices import FramesExtractor, SlicesExtractor, evenly
from medisyn.evaluation.features.encoder import EncoderExtractor, MedicalEncoder
from medisyn.evaluation.features.i3d import I3dExtractor, load_i3d
from medisyn.evaluation.features.inception import resize_antialiased, resize_tensorflow
from medisyn.evaluation.features.medicalnet import load_medicalnet
from medisyn.evaluation.features.pixels import CLIP, centre_cropped, normalised, squashed
from medisyn.evaluation.features.published import I3D, name_of
from medisyn.nn.resnet import resnet3d


def noise(seed, height=40, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


# ---- pixels


def test_the_short_side_is_scaled_and_the_long_one_cut_in_the_middle():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (centre_cropped(wide, 10) == 200).all()
    assert centre_cropped(noise(0, 90, 37), 20).shape == (20, 20, 3)
    assert squashed(wide, 12).shape == (12, 12, 3)


def test_normalised_by_hand():
    white = normalised([np.full((2, 2, 3), 255, np.uint8)], CLIP)
    assert white.shape == (1, 3, 2, 2)
    np.testing.assert_allclose(white[0, :, 0, 0], (1 - np.array(CLIP[0])) / np.array(CLIP[1]), rtol=1e-6)


def test_tensorflow_s_grid_by_hand():
    # two columns 0 and 100 become 299: output i lies at 2 i / 299, and beyond column 1 nothing follows
    columns = np.zeros((2, 2, 3), np.uint8)
    columns[:, 1] = 100
    row = resize_tensorflow(columns)[0, 0]
    np.testing.assert_allclose(row[:150], 100 * 2 * np.arange(150) / 299, atol=1e-3)
    np.testing.assert_array_equal(row[150:], 100)


def test_the_antialiased_resize_does_not_alias():
    stripes = np.zeros((8, 1196, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize_antialiased(stripes)[:, :, 20:-20]) < 40
    assert np.ptp(resize_tensorflow(stripes)[:, :, 20:-20]) == 0  # every fourth column: aliased to one grey level


# ---- CLIP


def clip_folder(folder, side=224):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=side,
        patch_size=56,
        projection_dim=8,
    )
    seeded(lambda: CLIPVisionModelWithProjection(config)).save_pretrained(folder)
    return folder


def test_clip_gives_unit_vectors_of_the_squashed_image(tmp_path):
    from transformers import CLIPVisionModelWithProjection

    folder = clip_folder(tmp_path / "clip")
    extractor = load_extractor(f"clip-224:{folder}")
    assert (extractor.dim, extractor.preprocessing) == (8, "squash224-pillow-bicubic-clip-unit")
    assert extractor.id.startswith("clip:")
    found = extractor([noise(0), noise(1)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    network = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    resized = np.asarray(Image.fromarray(noise(1)).resize((224, 224), Image.Resampling.BICUBIC))
    with torch.inference_mode():
        expected = network(pixel_values=normalised([resized], CLIP)).image_embeds[0]
    np.testing.assert_allclose(found[1], expected / expected.norm(), rtol=1e-4, atol=1e-6)  # float32


def test_clip_of_another_side_is_refused(tmp_path):
    folder = clip_folder(tmp_path / "clip")
    with pytest.raises(ModelError, match="takes images of 224 pixels, the extractor asked for 336"):
        load_extractor("clip", folder)


def test_clip_without_weights():
    with pytest.raises(InputError, match=r"clip needs its weights: clip:FOLDER.*clip-vit-large-patch14-336"):
        load_extractor("clip")


# ---- BiomedCLIP: a timm ViT as open_clip stores it, and its forward pass written out


WIDTH, DEPTH, PATCH, GRID, EMBED = 64, 2, 16, 14, 8


def open_clip_weights():
    """Random tensors under open_clip's names for a timm ViT of one head, with some of its text tower."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, around=0.0):
        return around + 0.1 * torch.randn(shape, generator=generator)

    trunk = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, GRID**2 + 1, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": draw(WIDTH, around=1.0),
        "norm.bias": draw(WIDTH),
    }
    for block in range(DEPTH):
        shapes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        shapes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for part, shape in shapes.items():
            trunk[f"blocks.{block}.{part}.weight"] = draw(*shape)
            trunk[f"blocks.{block}.{part}.bias"] = draw(shape[0])
        for part in ("norm1", "norm2"):
            trunk[f"blocks.{block}.{part}.weight"] = draw(WIDTH, around=1.0)
            trunk[f"blocks.{block}.{part}.bias"] = draw(WIDTH)
    return {
        **{f"visual.trunk.{name}": tensor for name, tensor in trunk.items()},
        "visual.head.proj.weight": draw(EMBED, WIDTH),
        "text.proj.0.weight": draw(4, 4),
        "logit_scale": torch.tensor(4.0),
    }


def timm_forward(weights, pixels):
    """A ViT-B/16 as timm runs it: pre-norm blocks, packed query-key-value, epsilon 1e-6, class token projected."""
    w = {name.removeprefix("visual.trunk."): tensor for name, tensor in weights.items()}
    F = nn.functional

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + w["pos_embed"]
    for block in range(DEPTH):
        q, k, v = linear(norm(x, f"blocks.{block}.norm1"), f"blocks.{block}.attn.qkv").split(WIDTH, dim=-1)
        attended = (q @ k.transpose(1, 2) / math.sqrt(WIDTH)).softmax(dim=-1) @ v
        x = x + linear(attended, f"blocks.{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{block}.norm2"), f"blocks.{block}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{block}.mlp.fc2")
    embedded = norm(x, "norm")[:, 0] @ w["visual.head.proj.weight"].T
    return embedded / embedded.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_biomedclip_computes_what_timm_computes(tmp_path, ending):
    weights = open_clip_weights()
    path = tmp_path / f"open_clip.{ending}"
    save_file(weights, path) if ending == "safetensors" else torch.save(weights, path)
    extractor = load_extractor("biomedclip", path)
    assert extractor.preprocessing == "short224-centre-crop-pillow-bicubic-clip-unit"
    assert extractor.id.endswith("-unlisted")  # no sha256 of the published file is on record
    images = [noise(0, 224, 300), noise(1, 224, 224)]
    expected = timm_forward(weights, normalised([centre_cropped(image, 224) for image in images], CLIP))
    np.testing.assert_allclose(extractor(images), expected, rtol=1e-3, atol=1e-5)  # float32, fused attention


def test_biomedclip_refusals(tmp_path):
    with pytest.raises(ModelError, match=r"no weight file was given\. Download open_clip_pytorch_model\.bin"):
        load_extractor("biomedclip")
    weights = open_clip_weights()
    save_file({name: weights[name] for name in weights if "norm2" not in name}, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=r"part\.safetensors is not a ViT as timm stores it .*layernorm_after"):
        load_biomedclip(tmp_path / "part.safetensors")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="holds no open_clip image tower"):
        load_biomedclip(tmp_path / "other.safetensors")
    (tmp_path / "x.bin").write_bytes(b"no file of tensors")
    with pytest.raises(ModelError, match=r"x\.bin is not a file of tensors"):
        load_biomedclip(tmp_path / "x.bin")
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(ModelError, match="something other than named tensors"):
        load_biomedclip(tmp_path / "list.bin")


# ---- I3D: a scripted module with the published call


class TinyI3d(nn.Module):
    """Mean colour per frame in the first features, with the signature of the published TorchScript."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True):
        assert rescale
        assert resize
        assert return_features
        means = x.mean(dim=[3, 4]).flatten(1)
        return nn.functional.pad(means, [0, 400 - means.shape[1]])


def i3d_file(path, module=None):
    torch.jit.script(module or TinyI3d()).save(str(path))
    return path


def clip(seed, frames=12, side=20):
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side + 4, 3), dtype=np.uint8)


def test_i3d_takes_the_first_frames_as_they_are(tmp_path):
    extractor = load_extractor("i3d:10", i3d_file(tmp_path / "i3d.pt"), kind="clips")
    assert (extractor.dim, extractor.preprocessing) == (400, "first-10-frames-squash224")
    assert extractor.id.endswith("-other")  # not the file whose sha256 is known, and so called
    clips = [clip(0), clip(1, side=30)]
    found = extractor(clips)
    assert found.shape == (2, 400)
    expected = clips[1][:10].mean(axis=(1, 2)).T.flatten()  # channel by channel, 0..255
    np.testing.assert_allclose(found[1, :30], expected, rtol=1e-5)


def test_the_known_i3d_file_is_named_by_its_sha256():
    assert name_of(I3D, I3D.sha256) == I3D.sha256[:8]


def test_i3d_refusals(tmp_path):
    with pytest.raises(ModelError, match=r"no weight file was given\. Download i3d_torchscript\.pt, sha256 bec6519f"):
        load_extractor("i3d", kind="clips")
    with pytest.raises(ModelError, match=r"gone\.pt does not exist"):
        load_i3d(tmp_path / "gone.pt")
    (tmp_path / "x.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"x\.pt is no TorchScript file"):
        load_i3d(tmp_path / "x.pt")
    with pytest.raises(InputError, match="at least 10 frames, got 9"):
        load_extractor("i3d:9", tmp_path / "x.pt", kind="clips")
    with pytest.raises(InputError, match="clip 1 of the batch has 12 frames, this extractor takes 16"):
        I3dExtractor(TinyI3d(), "x", 16)([clip(0, 16), clip(1, 12)])
    with pytest.raises(ModelError, match=r"features of shape \(1, 3\), not \(n, 400\)"):
        I3dExtractor(lambda x, **_: x.mean(dim=(2, 3, 4)), "x", 10)([clip(0)])


# ---- MedicalNet


def ct(seed, shape=(16, 16, 16)):
    return np.random.default_rng(seed).uniform(-1100, 900, shape).astype(np.float32)


@pytest.fixture(scope="module")
def medicalnet_file(tmp_path_factory):
    network = seeded(lambda: resnet3d(50, width=4)).eval()
    weights = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path_factory.mktemp("med3d") / "resnet_50.pth"
    torch.save({"state_dict": weights}, path)
    return path, network


def test_medicalnet_is_the_dilated_network_on_symmetric_values(medicalnet_file):
    path, network = medicalnet_file
    extractor = load_medicalnet(path, 16, width=4)
    assert extractor.dim == 128
    assert extractor.preprocessing == "hu-1024..600-symmetric-cube16-trilinear"
    scaled = (np.clip(ct(0), -1024, 600) + 1024) / 1624 * 2 - 1
    with torch.inference_mode():
        expected = network.features(torch.from_numpy(scaled)[None, None])[0]
        strided = seeded(lambda: resnet3d(50, width=4)).eval()
        strided.load_state_dict(network.state_dict())
        for stage in (strided.layer3, strided.layer4):
            stage[0].conv2.stride = stage[0].downsample[0].stride = (2, 2, 2)
        other = strided.features(torch.from_numpy(scaled)[None, None])[0]
    np.testing.assert_allclose(extractor([ct(0)])[0], expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(expected, other, rtol=1e-2)  # the trap: the same file loads, the features differ


def test_medicalnet_resizes_to_its_cube(medicalnet_file):
    extractor = load_medicalnet(medicalnet_file[0], 16, width=4)
    assert extractor([ct(0, (20, 12, 18)), ct(1)]).shape == (2, 128)


def test_medicalnet_without_weights():
    with pytest.raises(ModelError, match=r"med3d: no weight file was given\. Download resnet_50\.pth"):
        load_extractor("med3d", kind="volumes")


# ---- slice by slice and frame by frame


@pytest.fixture
def encoder():
    return EncoderExtractor(seeded(lambda: MedicalEncoder(["a", "b"], widths=(8, 16), size=16)), "ab" * 32)


def test_slices_are_windowed_and_averaged(encoder):
    extractor = SlicesExtractor(encoder)
    assert (extractor.id, extractor.dim) == ("medical-encoder-slices:abababab", 16)
    assert extractor.preprocessing == "32-even-axial-slices-hu-1024..600-squash16-pillow-bicubic"
    volume = ct(0, (3, 16, 16))
    grey = np.rint(np.clip((volume.astype(np.float64) + 1024) / 1624, 0, 1) * 255).astype(np.uint8)
    expected = encoder([np.stack([part] * 3, axis=-1) for part in grey]).mean(axis=0)
    np.testing.assert_allclose(extractor([volume])[0], expected, rtol=1e-5, atol=1e-6)


def test_frames_see_the_order(encoder):
    extractor = FramesExtractor(encoder)
    assert (extractor.id, extractor.dim) == ("medical-encoder-frames:abababab", 32)
    smooth = np.stack([np.full((16, 16, 3), 20 * t, np.uint8) for t in range(10)])
    shuffled = smooth[np.random.default_rng(0).permutation(10)]
    found = extractor([smooth, shuffled])
    np.testing.assert_allclose(found[0, :16], found[1, :16], rtol=1e-4, atol=1e-6)  # the same frames
    assert (found[1, 16:].sum()) > 1.5 * found[0, 16:].sum()  # larger steps


def test_even_indices():
    assert evenly(3).tolist() == [0, 1, 2]
    assert len(evenly(1000)) == by_slices.PICTURES
    assert evenly(1000)[[0, -1]].tolist() == [0, 999]


# ---- names and kinds


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("i3d", "images", "extractor 'i3d' takes clips, these are images: medical-encoder, inception"),
        ("med3d", "clips", "extractor 'med3d' takes volumes, these are clips"),
        ("inception", "volumes", "takes images, these are volumes: medical-encoder-slices, med3d"),
        ("biomedclp", "images", "is unknown, allowed: .*Did you mean 'biomedclip'"),
        ("biomedclip:x", "images", "biomedclip takes nothing after it"),
        ("i3d:many", "clips", "a whole number of at least 8 follows i3d:, not 'many'"),
        ("inception-legacy:download", "images", "'inception-legacy:download' is unknown"),
    ],
)
def test_names_that_do_not_fit(name, kind, message):
    with pytest.raises(ConfigError, match=message):
        load_extractor(name, kind=kind)


def test_items_of_the_wrong_shape_or_range():
    with pytest.raises(InputError, match=r"clip 0 of the batch: .*got \(1, 4, 4, 3\) uint8"):
        check_clips([np.zeros((1, 4, 4, 3), np.uint8)])
    with pytest.raises(InputError, match=r"volume 1 of the batch: .*got \(1, 4, 4, 4\)"):
        check_volumes([ct(0), ct(0)[:4, :4, :4][None]])
    with pytest.raises(RangeError, match=r"looks like \[0, 1\] or \[-1, 1\] and not Hounsfield"):
        check_volumes([np.random.default_rng(0).uniform(-1, 1, (4, 4, 4))])

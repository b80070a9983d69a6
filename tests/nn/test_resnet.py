"""ResNets against the published counts and keys, MONAI's networks with the same weights, and refused weight files."""

import hashlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from medisyn.errors import InputError, ModelError
from medisyn.nn.resnet import BasicBlock, Pointwise2d, ResNet, load_trunk, resnet2d, resnet3d


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_pictures_have_torchvisions_parameter_count(depth, parameters):
    with torch.device("meta"):
        assert count(resnet2d(depth, 1000)) == parameters


def test_volumes_have_medicalnets_parameter_count():
    with torch.device("meta"):
        assert count(resnet3d(50)) == 46_155_072


@pytest.mark.parametrize(("depth", "shortcut"), [(10, "B"), (18, "A"), (50, "B")])
def test_volumes_have_monais_keys_and_shapes(depth, shortcut):
    from monai.networks.nets import resnet as monai_resnet

    with torch.device("meta"):
        other = getattr(monai_resnet, f"resnet{depth}")(
            spatial_dims=3, n_input_channels=1, shortcut_type=shortcut, bias_downsample=False, feed_forward=False
        )
        ours = resnet3d(depth)
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (ours, other)]
    assert shapes[0] == shapes[1]


def test_keys_are_the_published_ones():
    with torch.device("meta"):
        names = set(resnet2d(50, 1000).state_dict())
        volume_names = set(resnet3d(18).state_dict())
    assert len(names) == 320  # as in torchvision's resnet50
    published = {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"}
    assert published | {"layer3.5.conv3.weight", "layer4.2.bn3.num_batches_tracked", "fc.weight"} <= names
    assert not any("downsample" in name for name in volume_names)  # resnet_18.pth was trained with shortcut A


def test_the_last_stages_of_volumes_are_dilated_and_keep_their_size():
    with torch.device("meta"):
        network = resnet3d(50)
        maps = network.maps(torch.empty(1, 1, 64, 32, 32))
        pictures = resnet2d(50).maps(torch.empty(1, 3, 64, 96))
    assert maps.shape == (1, 2048, 8, 4, 4)  # stride 8, not 32
    assert pictures.shape == (1, 2048, 2, 3)
    found = [
        (getattr(network, f"layer{n}")[0].conv2.stride[0], network.get_submodule(f"layer{n}.1.conv2").dilation[0])
        for n in (1, 2, 3, 4)
    ]
    assert found == [(1, 1), (2, 1), (1, 2), (1, 4)]


@pytest.mark.parametrize(("depth", "block", "layers"), [(18, "basic", [2, 2, 2, 2]), (50, "bottleneck", [3, 4, 6, 3])])
def test_pictures_equal_monai_with_the_same_weights(depth, block, layers):
    from monai.networks.nets.resnet import ResNet as MonaiResNet

    torch.manual_seed(0)
    other = MonaiResNet(
        block,
        layers,
        [8, 16, 32, 64],
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        shortcut_type="B",
        num_classes=5,
        bias_downsample=False,
    ).eval()
    ours = resnet2d(depth, 5, width=8).eval()
    ours.load_state_dict(other.state_dict())
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(image), other(image), rtol=1e-4, atol=1e-5)  # float32, other order of sums


def test_dilation_changes_the_features_of_the_same_weights():
    torch.manual_seed(0)
    dilated = resnet3d(10, width=4).eval()
    strided = ResNet(10, 3, channels_in=1, num_classes=None, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), width=4)
    strided.load_state_dict(dilated.state_dict())  # loads without a word: this is the trap
    volume = torch.randn(1, 1, 32, 32, 32)
    assert not torch.allclose(dilated(volume), strided.eval()(volume), rtol=0.05)


def test_shortcut_a_takes_every_second_voxel_and_adds_empty_channels():
    torch.manual_seed(0)
    network = ResNet(
        18, 3, channels_in=1, num_classes=None, strides=(1, 2, 1, 1), dilations=(1, 1, 1, 1), shortcut="A", width=2
    )
    x = torch.arange(2 * 4 * 4 * 4).float().reshape(1, 2, 4, 4, 4)
    got = network.layer2[0].downsample(x)
    assert torch.equal(got[:, :2], x[:, :, ::2, ::2, ::2])
    assert got.shape == (1, 4, 2, 2, 2)
    assert not got[:, 2:].any()


@pytest.mark.parametrize("network", [resnet2d(10, 3, width=4), resnet3d(50, 3, width=2)])
def test_every_parameter_learns(network):
    shape = (4, 3, 32, 32) if network.dims == 2 else (4, 1, 16, 16, 16)
    network(torch.randn(shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


def test_an_impossible_network_is_refused():
    with pytest.raises(InputError, match=r"depth 10, 18, 50.*got depth 34"):
        resnet2d(34)


def published(network: ResNet) -> dict[str, torch.Tensor]:
    return {f"module.{name}": tensor for name, tensor in network.state_dict().items()}


def test_a_medicalnet_file_is_read_without_its_prefix_and_its_head(tmp_path):
    source, target = resnet3d(10, width=2), resnet3d(10, 4, width=2)
    head = target.fc.weight.clone()
    content = published(source) | {"module.conv_seg.0.weight": torch.ones(3)}
    torch.save({"epoch": 3, "state_dict": content}, tmp_path / "resnet_10.pth")
    digest = load_trunk(target, tmp_path / "resnet_10.pth")
    assert digest == hashlib.sha256((tmp_path / "resnet_10.pth").read_bytes()).hexdigest()
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    assert torch.equal(target.fc.weight, head)


def test_a_file_from_before_batch_counts_is_taken(tmp_path):
    source, target = resnet2d(10, 1000, width=2), resnet2d(10, 2, width=2)
    old = {name: tensor for name, tensor in source.state_dict().items() if "num_batches_tracked" not in name}
    save_file(old, tmp_path / "resnet.safetensors")
    load_trunk(target, tmp_path / "resnet.safetensors")
    assert torch.equal(target.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("layer2.0.conv1.weight"), "1 weights are missing.*layer2.0.conv1.weight"),
        (lambda weights: weights.update(extra=torch.ones(1)), "1 are unknown.*extra"),
        (lambda weights: weights.update({"bn1.weight": torch.ones(7)}), "1 have another shape.*bn1.weight"),
    ],
)
def test_a_file_of_another_network_is_refused_whole(tmp_path, change, message):
    weights = dict(resnet2d(10, width=2).state_dict())
    change(weights)
    torch.save(weights, tmp_path / "other.pth")
    network = resnet2d(10, width=2)
    before = network.conv1.weight.clone()
    with pytest.raises(ModelError, match=message):
        load_trunk(network, tmp_path / "other.pth")
    assert torch.equal(network.conv1.weight, before)


def test_files_that_are_absent_damaged_or_no_tensors_are_refused(tmp_path):
    network = resnet2d(10, width=2)
    with pytest.raises(ModelError, match=r"weight file nothing\.pth does not exist"):
        load_trunk(network, tmp_path / "nothing.pth")
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"cut short")
    with pytest.raises(ModelError, match="not the one in its name"):
        load_trunk(network, tmp_path / "resnet18-f37072fd.pth")
    (tmp_path / "a.pth").write_bytes(b"not a pickle")
    with pytest.raises(ModelError, match="not a file of tensors"):
        load_trunk(network, tmp_path / "a.pth")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "b.pth")
    with pytest.raises(ModelError, match="other than one set of named tensors"):
        load_trunk(network, tmp_path / "b.pth")


def test_basic_block_adds_its_input():
    block = BasicBlock(2, 3, 3, 1, 1, None).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_strided_pointwise_convolution_is_the_plain_one(stride):
    torch.manual_seed(0)
    ours, plain = Pointwise2d(5, 9, 1, stride=stride), torch.nn.Conv2d(5, 9, 1, stride=stride)
    plain.load_state_dict(ours.state_dict())
    grids = [torch.randn(2, 5, 7, 8).requires_grad_() for _ in range(2)]
    grids[1].data = grids[0].data
    results = [network(grid) for network, grid in zip((ours, plain), grids, strict=True)]
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(*results)
    torch.testing.assert_close(grids[0].grad, grids[1].grad)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_no_strided_convolution_of_width_1_is_torchs_own(depth):
    """Holds on processors too where the fault below does not show."""
    with torch.device("meta"):
        convolutions = [module for module in resnet2d(depth).modules() if isinstance(module, torch.nn.Conv2d)]
    strided = [one for one in convolutions if one.kernel_size == (1, 1) and one.stride != (1, 1)]
    assert len(strided) == 3
    assert all(type(one) is Pointwise2d for one in strided)


def test_a_narrow_network_learns_in_channels_last_without_harm():
    """In a process of its own: with a strided convolution of torch the heap breaks on processors with AVX2."""
    code = """
import torch
from medisyn.nn.resnet import resnet2d
network = resnet2d(10, 3, width=4)
for _ in range(30):
    network(torch.rand(3, 3, 32, 32).contiguous(memory_format=torch.channels_last)).square().mean().backward()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Model folders: written whole, refused with a reason, and opened part by part."""

import json

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from medisyn.errors import ModelError
from medisyn.nn.folders import FolderKind, check_part, open_part, quiet, save_part

KIND = FolderKind("tiny.json", family="tiny", title="Tiny")


class Tiny(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.register_buffer("mean", torch.zeros(width))


def test_a_part_comes_back_bit_for_bit_with_its_buffers(tmp_path):
    network = Tiny(4)
    network.mean.copy_(torch.arange(4))
    save_part(network, tmp_path / "part")
    opened = open_part(tmp_path / "part", Tiny)
    assert not opened.training
    assert torch.equal(opened.linear.weight, network.linear.weight)
    assert opened.mean.tolist() == [0, 1, 2, 3]
    save_part(network, tmp_path / "half", "float16")
    half = open_part(tmp_path / "half", Tiny, "bfloat16")
    assert half.linear.weight.dtype == torch.bfloat16
    assert network.linear.weight.dtype == torch.float32


def test_parts_that_do_not_open(tmp_path):
    save_part(Tiny(), tmp_path / "part")
    for dtype, call in (("float16", open_part), ("int8", save_part)):
        with pytest.raises(ModelError, match=f"dtype '{dtype}' is not offered"):
            call(*((tmp_path / "part", Tiny) if call is open_part else (Tiny(), tmp_path / "x")), dtype)
    with pytest.raises(ModelError, match=r"lacks the part none: none/config.json is missing"):
        check_part(tmp_path / "none", "config.json")
    (tmp_path / "part" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="the part part cannot be opened"):
        open_part(tmp_path / "part", Tiny)


def test_a_missing_weight_is_named(tmp_path):
    from safetensors.torch import save_file

    save_part(Tiny(), tmp_path / "part")
    weights = {"linear.bias": torch.zeros(3), "mean": torch.zeros(3)}
    save_file(weights, tmp_path / "part" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, the first is linear.weight"):
        open_part(tmp_path / "part", Tiny)


def test_settings_say_the_family(tmp_path):
    assert not KIND.holds(tmp_path)
    with pytest.raises(ModelError, match=r"holds no tiny.json: it is not a Tiny model"):
        KIND.read_settings(tmp_path)
    KIND.write_settings(tmp_path, grid=[1, 2])
    assert KIND.read_settings(tmp_path) == {"family": "tiny", "grid": [1, 2]}
    assert KIND.holds(tmp_path)
    for content, message in (("{", "not readable JSON"), (json.dumps({"family": "x"}), "does not say family tiny")):
        (tmp_path / "tiny.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            KIND.read_settings(tmp_path)


def test_a_folder_is_replaced_whole_and_only_where_it_is_a_model(tmp_path):
    with KIND.written_whole(tmp_path / "m") as folder:
        KIND.write_settings(folder)
        (folder / "old").write_text("x")
    with pytest.raises(RuntimeError), KIND.written_whole(tmp_path / "m"):
        raise RuntimeError
    assert (tmp_path / "m" / "old").exists()
    with KIND.written_whole(tmp_path / "m") as folder:
        KIND.write_settings(folder)
    assert not (tmp_path / "m" / "old").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.doc").write_text("x")
    with pytest.raises(ModelError, match=r"no Tiny model \(thesis.doc\); they would be lost"):
        KIND.written_whole(tmp_path / "thesis").__enter__()


def test_progress_bars_come_back(capsys):
    import transformers.utils.logging as log

    log.enable_progress_bar()
    with quiet():
        assert not log.is_progress_bar_enabled()
    assert log.is_progress_bar_enabled()

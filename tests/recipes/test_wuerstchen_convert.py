"""Raw Würstchen checkpoints: random weights under the raw names, converted, and compared with what they came from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import build_wuerstchen_folders as folders
from medisyn.cli import main
from medisyn.errors import InputError, ModelError
from medisyn.families.wuerstchen.config import DECODER_TINY, IMAGE_ENCODER_TINY, PRIOR_TINY, VQGAN_TINY
from medisyn.families.wuerstchen.layouts import open_networks
from medisyn.families.wuerstchen.parts import open_network
from medisyn.recipes import wuerstchen_convert
from medisyn.recipes.wuerstchen_convert import (
    Conversion,
    convert_wuerstchen,
    prior_config,
    read_entry,
    to_published,
)

TINY = {
    "head_width": 16,
    "decoder_config": DECODER_TINY,
    "vqgan_config": VQGAN_TINY,
    "encoder_config": IMAGE_ENCODER_TINY,
}


def equal(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def text_folder(folder: Path) -> Path:
    """A text encoder with its tokenizer in one folder, as a CLIP is published."""
    made = folders.networks()
    made.text_encoder.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def test_raw_checkpoints_become_one_model(tmp_path):
    files, words = folders.write_raw(tmp_path / "raw"), text_folder(tmp_path / "clip")
    report = convert_wuerstchen(tmp_path / "out", **files, text=words, decoder_text=words, **TINY)
    opened, made = open_networks(tmp_path / "out", needs_image_encoder=True), folders.networks()
    for part in ("prior", "decoder", "vqgan", "image_encoder"):
        assert equal(getattr(opened, part), getattr(made, part)), part
    count = sum(parameter.numel() for parameter in made.prior.parameters())
    assert report.lines[1] == f"prior: stage_c.pt, {count:,} weights"
    assert report.summary().endswith("out/ is ready")


def test_published_pipelines_and_the_image_encoder_become_one_model(tmp_path):
    prior, decoder = folders.write_hub_folders(tmp_path)
    files = folders.write_raw(tmp_path / "raw")
    report = convert_wuerstchen(tmp_path / "out", prior=prior, decoder=decoder, stage_b=files["stage_b"], **TINY)
    opened, made = open_networks(tmp_path / "out", needs_image_encoder=True), folders.networks()
    assert equal(opened.prior, made.prior)
    assert equal(opened.encoder(), made.encoder())
    assert report.lines[1] == "prior: from wuerstchen-prior/"
    # without Stage B's checkpoint the model lacks the image encoder, and the report says so
    report = convert_wuerstchen(tmp_path / "other", prior=prior, decoder=decoder)
    assert report.lines[-1].startswith("image_encoder: none, it comes with --stage-b")
    assert open_networks(tmp_path / "other").image_encoder is None


def test_image_encoder_alone(tmp_path):
    files = folders.write_raw(tmp_path / "raw")
    report = convert_wuerstchen(tmp_path / "image_encoder", stage_b=files["stage_b"], encoder_config=IMAGE_ENCODER_TINY)
    assert equal(open_network("image_encoder", tmp_path / "image_encoder"), folders.networks().encoder())
    assert report.lines[0].startswith("image_encoder: stage_b.pt, ")
    with pytest.raises(InputError, match=r"image_encoder exists already"):
        convert_wuerstchen(tmp_path / "image_encoder", stage_b=files["stage_b"], encoder_config=IMAGE_ENCODER_TINY)


def test_joined_attention_is_split_as_torch_reads_it():
    # the raw networks use torch's MultiheadAttention; ours, with the split weights, gives its output
    from medisyn.families.wuerstchen.blocks import Attention

    raw, ours = nn.MultiheadAttention(8, 2, batch_first=True).eval(), Attention(8, 2, 0.0).eval()
    nn.init.normal_(raw.in_proj_bias)
    state = to_published({f"attention.attn.{name}": value for name, value in raw.state_dict().items()})
    ours.load_state_dict({name.removeprefix("attention."): value for name, value in state.items()})
    tokens, read = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens, read), raw(tokens, read, read)[0], rtol=1e-5, atol=1e-6)


def test_names_go_to_raw_and_back():
    for network in (folders.networks().prior, folders.networks().decoder, folders.networks().vqgan):
        state = network.state_dict()
        raw = folders.to_raw(state)
        assert any("in_proj" in name or "codebook" in name for name in raw)
        back = to_published(raw)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_size_of_stage_c_is_read_from_its_weights():
    published = replace(PRIOR_TINY, dropout=0.1)  # dropout is not in the weights
    assert prior_config(folders.networks().prior.state_dict(), head_width=16) == published
    with pytest.raises(ModelError, match=r"is no Stage C of Würstchen: it lacks projection.weight"):
        prior_config({"clip_mapper.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"the part prior holds weights of Stable Cascade"):
        prior_config({"clip_txt_mapper.weight": torch.zeros(1)})


def test_what_is_nowhere_is_asked_for(tmp_path):
    files, words = folders.write_raw(tmp_path / "raw"), text_folder(tmp_path / "clip")
    with pytest.raises(InputError, match=r"text_encoder is nowhere: give --text FOLDER \(CLIP ViT-bigG-14"):
        convert_wuerstchen(tmp_path / "out", **files)
    with pytest.raises(InputError, match=r"give --decoder-text FOLDER \(CLIP ViT-H-14"):
        convert_wuerstchen(tmp_path / "out", **files, text=words)
    del files["stage_a"]
    with pytest.raises(
        InputError, match=r"the part vqgan is nowhere: give --stage-a vqgan_f4_v1_500k.pt, or --decoder"
    ):
        convert_wuerstchen(tmp_path / "out", **files, text=words, decoder_text=words, **TINY)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_are_not_what_they_should_be(tmp_path):
    files = folders.write_raw(tmp_path / "raw")
    with pytest.raises(ModelError, match=r"there is no file none.pt"):
        read_entry(tmp_path / "none.pt", "state_dict")
    (tmp_path / "bad.pt").write_bytes(b"no pickle")
    with pytest.raises(ModelError, match=r"bad.pt cannot be read as a checkpoint"):
        read_entry(tmp_path / "bad.pt", "state_dict")
    with pytest.raises(
        ModelError, match=r"stage_a.pt has no weights under effnet_state_dict; it holds state_dict. Were"
    ):
        convert_wuerstchen(tmp_path / "out", stage_b=files["stage_a"])
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ModelError, match=r"list.pt has no weights under state_dict; it holds list"):
        read_entry(tmp_path / "list.pt", "state_dict")


class Hostile:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Hostile()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match=r"Pickles that hold more than tensors are refused"):
        read_entry(tmp_path / "evil.pt", "state_dict")
    assert "code ran" not in capsys.readouterr().out


def test_old_checkpoints_without_a_zip_are_read(tmp_path):
    torch.save({"state_dict": {"module.a": torch.ones(2)}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_entry(tmp_path / "old.pt", "state_dict")["a"], torch.ones(2))


def test_options_of_the_command_reach_the_recipe(monkeypatch, capsys, tmp_path):
    seen = {}

    def record(out, **options):
        seen.update(options)
        return Conversion(out, ("prior: 3 weights",))

    monkeypatch.setattr(wuerstchen_convert, "convert_wuerstchen", record)
    options = {name: Path(f"{name}.x") for name in ("stage_a", "stage_b", "stage_c", "prior", "decoder", "text")}
    options["decoder_text"] = Path("words")
    words = [word for name, path in options.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    assert main(["convert", "wuerstchen", *words, "--out", "models/w"]) == 0
    assert capsys.readouterr().out == "prior: 3 weights\nw/ is ready\n"
    assert seen == options


def test_a_missing_checkpoint_is_one_line_and_code_2(tmp_path, capsys):
    assert main(["convert", "wuerstchen", "--stage-b", f"{tmp_path}/none.pt", "--out", f"{tmp_path}/out"]) == 2
    assert capsys.readouterr().err.startswith("medisyn: there is no file none.pt. Published checkpoints are in")

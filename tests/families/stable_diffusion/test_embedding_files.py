import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from medisyn.errors import InputError, ModelError
from medisyn.families.stable_diffusion.embedding_files import (
    LAYOUTS,
    Embedding,
    as_token,
    read_embedding,
    write_embedding,
)
from medisyn.families.stable_diffusion.embeddings import check_fits

PUBLISHED = ("chexpert_cardiomegaly", "chexpert_healthy", "pcam_pos", "prostate_neg")


def embedding(*widths, num_vectors=3, token="<lesion>"):
    generator = torch.Generator().manual_seed(0)
    return Embedding(token, tuple(torch.randn(num_vectors, width, generator=generator) for width in widths), 50, "base")


def a1111_reader(path):
    """What AUTOMATIC1111's textual_inversion.py does with a file: (vectors of one or two encoders, step)."""
    data = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    if "string_to_param" in data:
        [vectors] = data["string_to_param"].values()
        found = [vectors]
    elif "clip_g" in data and "clip_l" in data:
        found = [data["clip_l"], data["clip_g"]]
    else:
        [vectors] = data.values()
        found = [vectors]
    return [v.detach().float() for v in found], data.get("step")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_bit_for_bit_and_is_read_by_automatic1111(tmp_path, layout):
    before = embedding(8)
    path = write_embedding(before, tmp_path / f"lesion{LAYOUTS[layout]}", layout)
    after = read_embedding(path, allow_pickle=True)
    assert torch.equal(after.vectors[0], before.vectors[0])
    assert (after.token, after.step, after.base, after.widths) == ("<lesion>", 50, "base", (8,))
    [read], step = a1111_reader(path)
    assert torch.equal(read, before.vectors[0])
    assert step == (50 if layout == "a1111" else None)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_sdxl_is_written_as_clip_l_and_clip_g(tmp_path, layout):
    before = embedding(8, 12)
    path = write_embedding(before, tmp_path / "lesion.safetensors", layout)
    assert {name: tuple(t.shape) for name, t in load_file(path).items()} == {"clip_l": (3, 8), "clip_g": (3, 12)}
    after = read_embedding(path)
    assert after.widths == (8, 12)
    assert after.token == "<lesion>"
    assert all(torch.equal(a, b) for a, b in zip(after.vectors, before.vectors, strict=True))
    read, _ = a1111_reader(path)
    assert torch.equal(read[1], before.vectors[1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_embeddings_survive_every_layout(tmp_path, shared_data, name):
    """64 x 1024 float32 of the authors' repository; std as in their table, to three digits."""
    source = shared_data / "open" / "textual_inversion_embeddings" / f"{name}.pt"
    raw = torch.load(source, weights_only=True, map_location="cpu")["string_to_param"]["*"]
    found = read_embedding(source, allow_pickle=True)
    assert found.token == f"<{name}>"
    assert found.widths == (1024,)
    assert found.num_vectors == 64
    assert found.base == "checkpoints_512-base-ema"
    for layout, suffix in LAYOUTS.items():
        path = write_embedding(found, tmp_path / f"{name}{suffix}", layout)
        assert path.stat().st_size < 1_000_000
        again = read_embedding(path, allow_pickle=True)
        assert torch.equal(again.vectors[0], raw.detach())
        assert (again.token, again.step) == (found.token, found.step)
    with pytest.raises(ModelError, match=r"1024 \(Stable Diffusion 2\) wide, this model's are 768"):
        check_fits(found, (768,))


def test_half_precision_stays_half(tmp_path):
    save_file({"<a>": torch.ones(2, 4, dtype=torch.float16)}, tmp_path / "x.safetensors")
    found = read_embedding(tmp_path / "x.safetensors")
    assert found.token == "<a>"
    assert found.vectors[0].dtype == torch.float16


def test_a_single_flat_vector_and_kohyas_pickle(tmp_path):
    torch.save({"emb_params": torch.arange(4.0)}, tmp_path / "Old Lung.pt")
    found = read_embedding(tmp_path / "Old Lung.pt", allow_pickle=True)
    assert found.token == "<old-lung>"
    assert found.vectors[0].tolist() == [[0, 1, 2, 3]]
    assert read_embedding(tmp_path / "Old Lung.pt", token="<new>", allow_pickle=True).token == "<new>"


class Malicious:
    """Unpickled by an ordinary loader, it makes a directory."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "plain"])
def test_a_malicious_pickle_is_refused_and_nothing_is_run(tmp_path, how):
    trap, path = tmp_path / "trap", tmp_path / "evil.pt"
    content = {"string_to_param": {"*": torch.ones(1, 4)}, "name": Malicious(trap)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match=r"evil.pt is refused.*Nothing in it was run"):
        read_embedding(path, allow_pickle=True)
    assert not trap.exists()
    if how == "torch":
        torch.load(path, weights_only=False)  # the trap itself works: an ordinary loader springs it
        assert trap.exists()


def test_the_refusal_names_what_the_pickle_asks_for(tmp_path):
    torch.save({"a": Malicious(tmp_path / "trap")}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match=r"It asks for \w+\.mkdir"):
        read_embedding(tmp_path / "evil.pt", allow_pickle=True)


def test_a_pickle_is_read_on_request_only(tmp_path):
    write_embedding(embedding(8), tmp_path / "x.pt", "a1111")
    with pytest.raises(ModelError, match=r"x.pt is a pickle.*medisyn convert embedding x.pt"):
        read_embedding(tmp_path / "x.pt")


def test_files_that_are_no_embedding(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"no embedding file none.safetensors"):
        read_embedding(tmp_path / "none.safetensors")
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"x.png is no embedding file; allowed"):
        read_embedding(tmp_path / "x.png")
    (tmp_path / "x.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ModelError, match=r"x.safetensors is damaged"):
        read_embedding(tmp_path / "x.safetensors")
    (tmp_path / "big.safetensors").write_bytes(b"")
    os.truncate(tmp_path / "big.safetensors", 2**27)
    with pytest.raises(ModelError, match="has 134 MB: that is a model"):
        read_embedding(tmp_path / "big.safetensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1, 2)], "no named tensors"),
        ({"string_to_param": 3, "name": "x"}, "string_to_param holds no named tensors"),
        ({"a": torch.ones(1, 2), "b": torch.ones(1, 2)}, "it holds a, b"),
        ({"a": torch.ones(1, 2, 3)}, "a is no table of vectors"),
        ({"a": torch.ones(2, 2, dtype=torch.int64)}, "a is no table of vectors"),
        ({"a": torch.ones(0, 4)}, "a holds no vectors"),
        ({"a": torch.full((1, 4), float("nan"))}, "a holds NaN"),
        ({"clip_l": torch.ones(1, 2), "clip_g": torch.ones(2, 2)}, "hold 1 and 2 vectors"),
    ],
)
def test_contents_that_are_no_embedding(tmp_path, content, reason):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=reason):
        read_embedding(tmp_path / "x.pt", allow_pickle=True)


def test_tokens():
    assert as_token("Prostate MRI") == as_token("<prostate-mri>") == "<prostate-mri>"
    for wrong in ("", "<>", "2cells", "a,b", "a<b", "a:b"):
        with pytest.raises(InputError, match="cannot be used"):
            as_token(wrong)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"layout 'koyha' is unknown.*Did you mean 'kohya'"):
        write_embedding(embedding(8), tmp_path / "x.pt", "koyha")
    with pytest.raises(InputError, match=r"layout a1111 is written to a file that ends in \.pt"):
        write_embedding(embedding(8), tmp_path / "x.safetensors", "a1111")
    with pytest.raises(InputError, match=r"belongs to SDXL.*layout kohya"):
        write_embedding(embedding(8, 12), tmp_path / "x.pt", "a1111")
    assert not list(tmp_path.iterdir())


def test_only_the_rows_are_written_not_the_matrix_they_lie_in(tmp_path):
    matrix = torch.randn(20_000, 8)
    part = Embedding("<x>", (matrix[:2],))
    assert write_embedding(part, tmp_path / "x.pt", "a1111").stat().st_size < 5000

"""What a picture says of itself: there and back, unicode, standard PNG keywords, damage."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from generation.fake_family import MODEL
from medisyn.errors import InputError, ReadError
from medisyn.generation import export, provenance
from medisyn.types import HU, UNIT, Clip, Picture, Request, Volume

REQUEST = Request("k-1", "Thorax «frontal», 胸部X線 🫁", 2**63 - 1, "Text", 4, 6, 30, 5.0, {"specialty": "radiology"})


def record(**changes: Any) -> dict[str, Any]:
    return {**provenance.record_of(REQUEST, MODEL, size=(4, 6), lost_words="the end", rejected=["a", "b"]), **changes}


def picture(channels: int = 3) -> Picture:
    return Picture(np.arange(channels * 24, dtype=np.uint8).reshape(channels, 4, 6))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "k-1.png"
    path.write_bytes(content)
    return path


def test_the_record_holds_what_is_needed_to_make_the_picture_again() -> None:
    got = record()
    assert {name: got[name] for name in ("file_name", "text", "prompt", "key", "seed", "negative_prompt")} == {
        "file_name": "k-1.png", "text": REQUEST.prompt, "prompt": REQUEST.prompt, "key": "k-1", "seed": 2**63 - 1,
        "negative_prompt": "Text",
    }  # fmt: skip
    assert (got["height"], got["width"], got["steps"], got["guidance"]) == (4, 6, 30, 5.0)
    assert (got["model"], got["model_digest"], got["solver"]) == ("fake", MODEL["digest"], "euler")
    assert (got["lost_words"], got["tries"], got["rejected_reasons"]) == ("the end", 3, "a; b")
    assert (got["notice"], got["specialty"]) == ("Synthetic image. Not for diagnostic use.", "radiology")
    assert got["software"].startswith("medisyn ")


def test_no_request_setting_can_hide_what_medisyn_writes() -> None:
    plain = provenance.record_of(Request("k", "p", 1), MODEL, size=(4, 6))
    from medisyn.generation.prompts import SETTING_COLUMNS

    assert set(plain) - {*SETTING_COLUMNS} == set(provenance.WRITTEN)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_and_record_come_back(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "k-1.png"
    export.write_png(path, picture(channels), record())
    assert provenance.read(path) == record()
    with Image.open(path) as image:
        assert image.mode == ("L" if channels == 1 else "RGB")
        assert image.size == (6, 4)
        pixels = np.asarray(image).reshape(4, 6, channels)
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), picture(channels).array_CHW)


def test_general_viewers_show_prompt_settings_and_notice() -> None:
    with Image.open(io.BytesIO(export.png_bytes(picture(), record()))) as image:
        text = image.info  # text before the pixels
    assert text["Description"] == REQUEST.prompt
    assert text["Disclaimer"] == "Synthetic image. Not for diagnostic use."
    assert text["Source"] == f"fake ({MODEL['digest']}), euler, 30 steps, guidance 5.0, seed {2**63 - 1}"


def test_the_same_picture_and_record_are_the_same_bytes() -> None:
    assert export.png_bytes(picture(), record()) == export.png_bytes(picture(), record())
    assert export.png_bytes(picture(), record()) != export.png_bytes(picture(), record(seed=1))


@given(prompt=st.text(st.characters(exclude_categories=["Cs"])), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, prompt: str, seed: int) -> None:
    path = tmp_path_factory.mktemp("png") / "x.png"
    path.write_bytes(export.png_bytes(picture(), record(prompt=prompt, text=prompt, seed=seed)))
    assert provenance.read(path) == record(prompt=prompt, text=prompt, seed=seed)


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    whole = export.png_bytes(picture(), record())
    for length in range(len(whole)):
        with pytest.raises(ReadError, match=r"k-1.png: (not a readable PNG|the PNG is cut short|holds no MediSyn)"):
            provenance.read(write(tmp_path, whole[:length]))
    assert provenance.read(write(tmp_path, whole)) == record()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"not a readable PNG \(FileNotFoundError\)"):
        provenance.read(tmp_path / "absent.png")
    with pytest.raises(ReadError, match="not a readable PNG"):
        provenance.read(write(tmp_path, b"prompt\n" * 20))
    plain = io.BytesIO()
    Image.new("RGB", (4, 4)).save(plain, "PNG")
    with pytest.raises(ReadError, match="holds no MediSyn record"):
        provenance.read(write(tmp_path, plain.getvalue()))
    damaged = export.png_bytes(picture(), record()).replace(b"medisyn\x00", b"nisydem\x00")
    with pytest.raises(ReadError, match=r"not a readable PNG|holds no MediSyn record"):  # a chunk with a wrong checksum
        provenance.read(write(tmp_path, damaged))


def test_a_record_that_is_not_json_is_named(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt(provenance.KEYWORD, "{half")
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG", pnginfo=chunks)
    with pytest.raises(ReadError, match="its MediSyn record is damaged"):
        provenance.read(write(tmp_path, stream.getvalue()))


def test_only_uint8_pictures_become_png() -> None:
    clip = Clip(np.zeros((3, 2, 4, 4), dtype=np.uint8))
    with pytest.raises(InputError, match="PNG files hold pictures; this model makes a Clip"):
        export.png_bytes(clip, record())
    with pytest.raises(InputError, match="this model makes a Volume"):
        export.png_bytes(Volume(np.zeros((1, 2, 4, 4), dtype=np.float32), np.eye(4), HU), record())
    with pytest.raises(InputError, match=r"got 3 of float32 \(unit\)"):
        export.png_bytes(Picture(np.zeros((3, 4, 4), dtype=np.float32), UNIT), record())
    with pytest.raises(InputError, match="got 2 of uint8"):
        export.png_bytes(Picture(np.zeros((2, 4, 4), dtype=np.uint8)), record())


def test_a_combined_prompt_shows_its_weights_and_effective_guidance() -> None:
    request = Request("k", "a :0.5 AND b :-0.25", 1, guidance=4.0, terms=(("a", 0.5), ("b", -0.25)))
    got = provenance.record_of(request, MODEL, size=(4, 6))
    assert got["terms"] == [{"text": "a", "weight": 0.5}, {"text": "b", "weight": -0.25}]
    assert got["effective_guidance"] == 3.0
    with Image.open(io.BytesIO(export.png_bytes(picture(), got))) as image:
        assert image.info["Source"].endswith("guidance 4.0, seed 1, weights 0.5 + -0.25, effective guidance 3.0")

import numpy as np
import pytest
from PIL import Image

from build_training import LinearFamily
from medisyn.errors import InputError
from medisyn.training.preview import Preview, tile
from medisyn.types import HU, Picture, Request


def test_tiles_by_hand():
    pictures = [Picture(np.full((channels, 2, 3), value, np.uint8)) for channels, value in ((1, 10), (3, 20), (1, 30))]
    sheet = tile(pictures)
    assert sheet.shape == (2 + 2 + 2, 3 + 2 + 3, 3)  # two rows and columns, gaps of 2
    assert (sheet[:2, :3] == 10).all()
    assert (sheet[:2, 5:] == 20).all()
    assert (sheet[4:, :3] == 30).all()
    assert (sheet[2:4] == 255).all()
    assert (sheet[4:, 5:] == 255).all()


def test_the_same_requests_give_the_same_png(tmp_path):
    family = LinearFamily()
    preview = Preview(family, [Request(key=str(n), prompt=f"prompt {n}", seed=n) for n in range(3)])
    preview(tmp_path / "a.png")
    preview(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").text["tile 1"] == "prompt 1 (seed 1)"


def test_only_uint8_pictures():
    with pytest.raises(InputError, match="uint8 pictures only"):
        tile([Picture(np.zeros((1, 2, 2), np.float32), HU)])

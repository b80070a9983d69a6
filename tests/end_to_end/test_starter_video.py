"""starter-video through the command line: a clip that beats, written as a user would ask for it."""

from __future__ import annotations

import numpy as np
import pytest

from medisyn.cli import main
from medisyn.corpus.readers.video import read_clip
from medisyn.generation.clip_files import read_record
from medisyn.phantoms.heart import measure_ejection
from medisyn.recipes.shipped_models import shipped_model

pytestmark = pytest.mark.skipif(not shipped_model("starter-video").present, reason="starter-video is not in this build")


def test_a_clip_from_a_prompt(tmp_path):
    out = tmp_path / "clip.gif"
    prompt = "Apical four-chamber view. Left ventricular systolic function is normal."
    command = ["generate", prompt, "--model", "starter-video", "--motion", "300", "--appearance", "0.7", "-o", str(out)]
    assert main([*command, "--steps", "8"]) == 0
    clip = read_clip(out)
    assert clip.array_CTHW.shape == (3, 16, 64, 112)
    record = read_record(out)
    assert (record["prompt"], record["motion"], record["appearance"]) == (prompt, 300, 0.7)
    frames_THW = clip.array_CTHW.mean(axis=0)
    corner, sector = frames_THW[:, :12, :20].mean(), frames_THW[:, 20:50, 40:72].mean()
    assert sector > corner + 15  # a fan on black
    assert np.abs(np.diff(frames_THW, axis=0)).mean() > 0.5  # and it moves
    assert 0 < (measure_ejection(frames_THW.astype(np.uint8)).ef or 0) < 90

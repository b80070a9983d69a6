"""The frames of an interpolation: their prompts, seeds and shares; the sheet and the animation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medisyn.errors import InputError
from medisyn.generation.interpolate import frame_requests, sheet, weighted_prompt, write_animation, write_sheet
from medisyn.generation.prompts import Defaults


def frames(start: str = "<healthy>", end: str | None = "<sick>", n: int = 1, count: int = 5, by: str = "weight") -> Any:
    return frame_requests(start, end, frames=count, by=by, defaults=Defaults(n=n, seed=1, steps=4, guidance=2.0))


def test_by_weight_the_prompt_says_it_all():
    requests = frames()
    assert [request.prompt for request in requests] == [
        "<healthy>",
        "<healthy> :0.75 AND <sick> :0.25",
        "<healthy> :0.5 AND <sick> :0.5",
        "<healthy> :0.25 AND <sick> :0.75",
        "<sick>",
    ]
    assert requests[1].terms == (("<healthy>", 0.75), ("<sick>", 0.25))
    assert requests[0].terms == ()
    assert (requests[0].steps, requests[0].guidance, requests[3].metadata["share"]) == (4, 2.0, 0.75)


def test_prompts_of_several_terms_are_scaled_as_they_are():
    assert weighted_prompt("a :2 AND b", "c", 0.25) == "a :1.5 AND b :0.75 AND c :0.25"
    assert weighted_prompt("a", "b :0.5", 1.0) == "b :0.5"
    assert weighted_prompt("a", "b", 0.8) == "a :0.2 AND b :0.8"


def test_a_series_keeps_its_seed_and_another_has_another():
    requests = frames(n=3)
    seeds = [request.seed for request in requests]
    assert [len(set(seeds[start : start + 5])) for start in (0, 5, 10)] == [1, 1, 1]
    assert len(set(seeds)) == 3
    assert [request.key for request in requests[4:6]] == ["s000-f004", "s001-f000"]
    assert seeds[:5] == [request.seed for request in frames(n=1)]  # more series leave the first as they are


def test_by_embedding_and_by_noise():
    middle = frames(by="embedding", count=3)[1]
    assert (middle.prompt, middle.toward_prompt, middle.toward_share, middle.toward_seed) == (
        "<healthy>", "<sick>", 0.5, None
    )  # fmt: skip
    first, last = frames(end=None, by="noise", count=2)
    assert (first.toward_share, last.toward_share, first.prompt, first.toward_prompt) == (0, 1, "<healthy>", "")
    assert first.toward_seed == last.toward_seed != first.seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "wieght"}, "interpolation by 'wieght' is unknown, allowed: weight, embedding, noise. Did you mean"),
        ({"count": 1}, "frames must be a whole number from 2 to 1000, got 1"),
        ({"end": None}, "by weight needs two prompts: give --to"),
        ({"by": "noise"}, "from one seed to another with one prompt: leave --to out"),
        ({"by": "embedding", "start": "a AND b"}, "by embedding takes plain prompts without AND"),
        ({"start": "a AND"}, "term 2 of 2 is empty"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        frames(**options)


def pictures(num_series: int, num_frames: int) -> list[list[np.ndarray]]:
    return [[np.full((4, 6, 3), 10 * s + f, np.uint8) for f in range(num_frames)] for s in range(num_series)]


def test_the_sheet_has_a_row_per_series(tmp_path: Path):
    array = sheet(pictures(2, 3))
    assert array.shape == (2 * 4 + 2, 3 * 6 + 4, 3)
    assert [int(array[0, column, 0]) for column in (0, 8, 16)] == [0, 1, 2]
    assert int(array[6, 0, 0]) == 10
    assert (array[4:6] == 255).all()
    write_sheet(tmp_path / "a" / "sheet.png", pictures(2, 3), "from a to b")
    with Image.open(tmp_path / "a" / "sheet.png") as image:
        np.testing.assert_array_equal(np.asarray(image), array)
        assert (image.info["Description"], image.info["Disclaimer"]) == (
            "from a to b", "Synthetic image. Not for diagnostic use."
        )  # fmt: skip


def test_the_animation_has_every_frame(tmp_path: Path):
    series = [[np.full((4, 6, 3), 60 * f, np.uint8) for f in range(4)] for _ in range(2)]
    write_animation(tmp_path / "a.gif", series, "from a to b")
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (4, (6 + 2 + 6, 4), 0)
        assert b"Not for diagnostic use" in image.info["comment"]
        shown, times = [], []
        for number in range(4):
            image.seek(number)
            shown.append(int(np.asarray(image.convert("RGB"))[0, 0, 0]))
            times.append(image.info["duration"])
    assert shown == [0, 60, 120, 180]
    assert times == [750, 250, 250, 750]

"""Clips from prompts: the folder and the single file, resuming, kills, and options that do not apply."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pydicom
import pytest

from generation import fake_clips
from generation.fake_clips import FakeClips
from medisyn import runs
from medisyn.cli import main
from medisyn.corpus.readers.video import read_clip
from medisyn.errors import BusyError, ConfigError, InputError
from medisyn.generation.clip_files import read_record
from medisyn.generation.provenance import read
from medisyn.recipes import generate_images as recipe
from medisyn.recipes.generate_clips import generate_clips
from medisyn.recipes.generate_images import generate_images
from medisyn.recipes.models import OpenedModel
from medisyn.types import Request

PROMPT = "Apical four-chamber view. Severely reduced ejection fraction."


@pytest.fixture
def family(monkeypatch):
    """`generate_images` opens the family without a network, whatever the name."""
    fake = FakeClips()
    opened = OpenedModel(
        fake, "fake-clips", "d" * 64, "ddim", resolve=fake.resolve, lost_words=fake.lost_words, clips=fake
    )
    monkeypatch.setattr(recipe, "_open", lambda *ignored: opened)
    return fake


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def decoded(path: Path) -> np.ndarray:
    """(3, T, H, W)."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).transpose(3, 0, 1, 2)


def contents(out: Path) -> dict[str, object]:
    """Place -> what a run leaves for its reader; run.json holds times, and the lock is no file of it."""
    return {
        str(path.relative_to(out)): content(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("run.json", ".lock")
    }


def content(path: Path) -> object:
    """The bytes; of H.264, whose encoder promises none, the shape of the decoded clip and the record."""
    return path.read_bytes() if path.suffix != ".mp4" else (read_clip(path).array_CTHW.shape, read_record(path))


# ---- the folder


def test_files_and_records(family, tmp_path):
    out = tmp_path / "out"
    report = generate_images(
        PROMPT, n=2, out=out, motion=500, appearance=0.4, frames=5, formats=["gif", "mkv", "mp4"], dicom=True
    )
    assert (report.made, report.skipped) == (2, 0)
    assert "2 clips, 2 made" in report.summary()
    first, second = lines(out)
    assert first["file_name"] == f"{first['key']}.mkv"  # the lossless one is the one to measure
    assert first["seed"] != second["seed"]
    assert (first["frames"], first["height"], first["width"], first["frames_per_second"]) == (5, 16, 24, 12.5)
    assert (first["motion"], first["appearance"], first["steps"], first["solver"]) == (500.0, 0.4, 4, "ddim")
    assert first["notice"] == "Synthetic. Not for diagnostic use."
    request = Request(first["key"], PROMPT, first["seed"], frames=5, motion=500.0)
    np.testing.assert_array_equal(decoded(out / first["file_name"]), fake_clips.pixels(request))
    for name in ("mkv", "mp4", "gif"):
        assert read_record(out / f"{first['key']}.{name}") == first
    assert read(out / "frames" / f"{first['key']}.png") == first
    assert json.loads((out / f"{first['key']}.json").read_text())["medisyn"] == first
    assert pydicom.dcmread(out / f"{first['key']}.dcm").NumberOfFrames == 5
    run = runs.read_run(out)
    assert run["settings"]["formats"] == ["mkv", "mp4", "gif"]
    assert run["timing"]["pictures"] == 2


def test_defaults_are_the_models_and_two_formats(family, tmp_path):
    generate_images(PROMPT, out=tmp_path / "out")
    (record,) = lines(tmp_path / "out")
    assert (record["frames"], record["motion"], record["appearance"]) == (6, 300, 0.7)
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir() if path.stem == record["key"]) == [
        ".json", ".mkv", ".mp4",
    ]  # fmt: skip
    generate_images(PROMPT, out=tmp_path / "gif", formats=["gif"])
    assert lines(tmp_path / "gif")[0]["file_name"].endswith(".gif")


def test_a_table_says_it_clip_by_clip_and_its_metadata_makes_the_same_clips(family, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,motion,appearance,frames,view\na,0,,,two\nb,700.5,0.1,4,four\n")
    generate_images(prompts=table, out=tmp_path / "a", motion=250, appearance=0.9)
    first, second = lines(tmp_path / "a")
    assert (first["motion"], first["appearance"], first["frames"], first["view"]) == (0, 0.9, 6, "two")
    assert (second["motion"], second["appearance"], second["frames"], second["view"]) == (700.5, 0.1, 4, "four")
    assert {tuple(batch) for batch in family.batches} == {(first["key"],), (second["key"],)}
    generate_images(prompts=tmp_path / "a" / "metadata.jsonl", out=tmp_path / "b")
    again = lines(tmp_path / "b")
    assert again == [first, second]
    for record in again:
        name = record["file_name"]
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_batches_hold_clips_of_one_length(tmp_path):
    family = FakeClips()
    asked = [*fake_clips.requests(3), *(Request(f"x{i}", "p", i, frames=4) for i in range(2))]
    asked = [family.resolve(request) for request in asked]
    generate_clips(asked, family, tmp_path / "out", model=fake_clips.MODEL, batch_size=2)
    assert family.batches == [["000", "001"], ["002"], ["x0", "x1"]]


@pytest.mark.parametrize("victim", ["{key}.mp4", "{key}.mkv", "{key}.json", "frames/{key}.png"])
def test_the_same_call_makes_what_is_missing(family, tmp_path, victim):
    out = tmp_path / "out"
    generate_images(PROMPT, n=2, out=out)
    whole = contents(out)
    path = out / victim.format(key=lines(out)[1]["key"])
    path.unlink()
    report = generate_images(PROMPT, n=2, out=out)
    assert (report.made, report.skipped) == (1, 1)
    assert contents(out) == whole
    assert "none left to make" in generate_images(PROMPT, n=2, out=out).summary()
    grown = generate_images(PROMPT, n=3, out=out)
    assert (grown.made, grown.skipped) == (1, 2)


def test_another_motion_is_another_folder(family, tmp_path):
    generate_images(PROMPT, out=tmp_path / "out", motion=100)
    with pytest.raises(InputError, match=r"with motion 100.*, now it is 200"):
        generate_images(PROMPT, out=tmp_path / "out", motion=200)


def test_two_processes_do_not_write_to_one_folder(family, tmp_path):
    with runs.lock(tmp_path / "out"), pytest.raises(BusyError, match="another process is writing to out/"):
        generate_images(PROMPT, out=tmp_path / "out")


def test_a_folder_of_something_else(family, tmp_path):
    (tmp_path / "scan.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds clips but no run.json"):
        generate_images(PROMPT, out=tmp_path)


SCRIPT = """
import sys
from pathlib import Path
from generation.fake_clips import MODEL, open_fake, requests
from medisyn.recipes.generate_clips import generate_clips

if __name__ == "__main__":
    print("ready", flush=True)
    generate_clips(requests(12), open_fake(), Path(sys.argv[1]), model=MODEL, batch_size=2)
"""


def test_killed_at_any_moment_nothing_is_lost_or_half_written(tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT)
    asked = fake_clips.requests(12)
    generate_clips(asked, FakeClips(), tmp_path / "straight", model=fake_clips.MODEL, batch_size=2)
    whole = contents(tmp_path / "straight")
    killed = 0
    for wait in (0.15, 0.3):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        process = subprocess.Popen([sys.executable, str(script), str(out)], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        wrong = [path.name for path in out.glob("[0-9]*.*") if content(path) != whole[path.name]]
        assert not wrong, "half-written files"
    assert killed
    generate_clips(asked, FakeClips(), out, model=fake_clips.MODEL, batch_size=2)
    assert contents(out) == whole


def test_what_a_kill_left_unfinished_is_cleared(family, tmp_path):
    generate_images(PROMPT, out=tmp_path / "out")
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "frames" / ".a.png.12345678.tmp").write_bytes(b"half")
    (tmp_path / "out" / ".a.mkv.12345678.tmp").write_bytes(b"half")
    generate_images(PROMPT, out=tmp_path / "out")
    assert contents(tmp_path / "out") == whole


# ---- one file


def test_one_clip_to_exactly_that_file(family, tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    report = generate_images(PROMPT, out=path, motion=300, appearance=0.7)
    assert (report.out, report.made) == (path, 1)
    assert sorted(file.name for file in path.parent.iterdir()) == ["clip.json", "clip.mp4"]
    record = read_record(path)
    assert (record["file_name"], record["prompt"], record["motion"]) == ("clip.mp4", PROMPT, 300)
    assert json.loads((path.parent / "clip.json").read_text())["medisyn"] == record
    before = path.read_bytes()
    assert generate_images(PROMPT, out=path, motion=300, appearance=0.7).skipped == 1
    path.unlink()  # as a kill between sidecar and clip leaves it
    assert generate_images(PROMPT, out=path, motion=300, appearance=0.7).made == 1
    assert path.read_bytes() == before


def test_a_file_of_something_else_is_not_overwritten(family, tmp_path):
    path = tmp_path / "clip.mkv"
    generate_images(PROMPT, out=path)
    for options in ({"motion": 5}, {"seed": 1}):
        with pytest.raises(InputError, match=r"clip.mkv or clip.json is there already and holds something else"):
            generate_images(PROMPT, out=path, **options)
    (tmp_path / "clip.json").unlink()
    with pytest.raises(InputError, match="holds something else"):
        generate_images(PROMPT, out=path)
    (tmp_path / "other.json").write_text("not JSON")
    with pytest.raises(InputError, match=r"other.gif or other.json is there already"):
        generate_images(PROMPT, out=tmp_path / "other.gif")
    assert (tmp_path / "other.json").read_text() == "not JSON"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2}, r"clip.mp4 is one file and 2 clips are asked for; give --out a folder"),
        ({"formats": ["gif"]}, "says which format is wanted; --format and --dicom need a folder"),
        ({"dicom": True}, "--format and --dicom need a folder"),
        ({"gallery": "page.html"}, "--gallery does not apply: it shows folders of clips"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
    ],
)
def test_what_one_file_cannot_be(family, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        generate_images(PROMPT, out=tmp_path / "clip.mp4", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_may_be_named_like_a_clip(family, tmp_path):
    (tmp_path / "old.gif").mkdir()
    generate_images(PROMPT, out=tmp_path / "old.gif")
    assert len(lines(tmp_path / "old.gif")) == 1


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 2}, "--processes does not apply: a model of clips works in one process"),
        ({"reject": lambda requests, pixels: [None]}, "--reject-copies-of does not apply"),
        ({"formats": ["mp5"]}, "format 'mp5' is unknown, allowed: mkv, mp4, gif. Did you mean 'mp4'"),
        ({"motion": -1}, "motion must be a number of 0 or more, got -1"),
        ({"appearance": 1.5}, "appearance must be a number from 0 to 1, got 1.5"),
        ({"frames": 1}, "frames must be a whole number from 2 to 10000, got 1"),
    ],
)
def test_options_that_do_not_apply(family, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        generate_images(PROMPT, out=tmp_path / "out", **options)


def test_a_factor_that_the_model_was_never_told(family, tmp_path):
    with pytest.raises(ConfigError, match=r"motion must lie in \[0, 1000\], got 1001"):
        generate_images(PROMPT, out=tmp_path / "out", motion=1001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,motion\na,fast\n", r"row 1: motion must be a number of 0 or more, got 'fast'"),
        ("prompt,appearance\na,2\n", r"row 1: appearance must be a number from 0 to 1, got '2'"),
        ("prompt,frames\na,7.5\n", r"row 1: frames must be a whole number from 2 to 10000, got '7.5'"),
    ],
)
def test_a_table_with_bad_factors(family, tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        generate_images(prompts=tmp_path / "p.csv", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"motion": 300}, "motion does not apply: tiny makes no clips.*--model starter-video"),
        ({"appearance": 0.0}, "appearance does not apply"),
        ({"frames": 16}, "frames does not apply"),
        ({"formats": ["mp4"]}, "--format does not apply: tiny makes no clips"),
        ({"out": "clip.mp4"}, "a clip's file as --out does not apply: tiny makes no clips"),
    ],
)
def test_what_is_for_clips_is_refused_for_pictures(tmp_path, options, message):
    import build

    folder = build.tiny_folder(tmp_path / "tiny")
    options = {"out": "out", **options}
    options["out"] = tmp_path / options["out"]
    with pytest.raises(InputError, match=message):
        generate_images("A chest X-ray", model=str(folder), dtype="float32", **options)


def test_what_is_for_pictures_is_refused_for_clips(family, tmp_path):
    from medisyn.recipes.interpolate_images import interpolate_images

    with pytest.raises(InputError, match="interpolation works on pictures; fake-clips makes clips"):
        interpolate_images(PROMPT, "No effusion.", frames=2, n=1, model="any", out=tmp_path / "a")


def test_a_model_that_makes_no_clips_after_all(tmp_path):
    with pytest.raises(InputError, match="video files hold clips; this model made a Picture"):
        generate_clips(fake_clips.requests(1), FakeClips(as_pictures=True), tmp_path / "out", model=fake_clips.MODEL)


# ---- the command, and the page


def test_the_command_of_the_manual(family, tmp_path, capsys):
    path = tmp_path / "clip.mp4"
    command = [
        "generate",
        PROMPT,
        "--model",
        "starter-video",
        "--motion",
        "300",
        "--appearance",
        "0.7",
        "-o",
        str(path),
    ]
    assert main(command) == 0
    assert "clip.mp4: 1 clips, 1 made" in capsys.readouterr().out
    assert read_record(path)["appearance"] == 0.7
    assert main([*command[:-1], str(tmp_path / "f"), "--format", "gif", "--format", "mkv", "--frames", "4"]) == 0
    assert lines(tmp_path / "f")[0]["frames"] == 4
    assert main([*command, "-n", "2"]) == 2


def test_the_page_plays_clips(family, tmp_path):
    from generation.test_gallery import Page

    generate_images(PROMPT, out=tmp_path / "a", gallery=tmp_path / "page.html")
    generate_images(PROMPT, out=tmp_path / "b", formats=["mkv", "gif"], gallery=tmp_path / "gif.html")
    page = Page((tmp_path / "page.html").read_text())
    (video,) = page.all("video")
    assert video["src"].startswith("data:video/mp4;base64,")
    assert {"autoplay", "loop", "muted", "playsinline"} <= set(video)
    assert video["aria-label"] == PROMPT
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "media-src data:" in policy
    text = " ".join(page.text)
    assert "6 frames of 24 × 16 pixels, 12.5 a second, motion 300, appearance 0.7" in text
    assert "Clips" in text
    assert "s per clip after loading" in text
    (picture,) = Page((tmp_path / "gif.html").read_text()).all("img")
    assert picture["src"].startswith("data:image/gif;base64,")


def test_pictures_and_clips_stand_on_one_page(family, tmp_path):
    from generation import fake_family
    from generation.test_gallery import Page
    from medisyn.generation.gallery import write_gallery
    from medisyn.generation.generate import generate

    generate(fake_family.requests(2), fake_family.FakeFamily(), tmp_path / "pictures", model=fake_family.MODEL)
    generate_images(PROMPT, out=tmp_path / "ultrasound")
    write_gallery(tmp_path / "pictures", tmp_path / "page.html", also=[tmp_path / "ultrasound"])
    page = Page((tmp_path / "page.html").read_text())
    assert (len(page.all("img")), len(page.all("video"))) == (2, 1)
    assert "Ultrasound" in page.text
    assert "Pictures" in page.text  # what is said above is of the first folder


def test_a_page_cannot_show_the_lossless_file_alone(family, tmp_path):
    with pytest.raises(InputError, match=r"without an .mp4 or .gif, and browsers play no other"):
        generate_images(PROMPT, out=tmp_path / "a", formats=["mkv"], gallery=tmp_path / "page.html")


# ---- the real family at tiny size


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    import build_higen

    folder = tmp_path_factory.mktemp("models") / "tiny-video"
    build_higen.model().save(folder)
    return str(folder)


def test_a_folder_of_higen_opens_and_makes_clips(tiny, tmp_path):
    from medisyn.recipes.models import open_model

    opened = open_model(tiny)
    assert (opened.id, opened.solver) == ("tiny-video", "ddim")
    assert opened.clips is opened.family
    report = generate_images("a small heart", model=tiny, n=2, motion=200, out=tmp_path / "a", dtype="float32")
    assert report.made == 2
    first, second = lines(tmp_path / "a")
    assert (first["frames"], first["height"], first["width"], first["motion"]) == (4, 16, 24, 200)
    alone, together = tmp_path / "a", tmp_path / "b"
    generate_images("a small heart", model=tiny, n=2, motion=200, out=together, dtype="float32", batch_size=2)
    for record in (first, second):
        one, other = (decoded(out / record["file_name"]).astype(int) for out in (alone, together))
        assert np.abs(one - other).max() <= 1  # rounding to whole grey levels


def test_motion_and_appearance_reach_the_network(tiny, tmp_path):
    made = {}
    for name, options in {"plain": {}, "motion": {"motion": 900}, "appearance": {"appearance": 0.1}}.items():
        path = tmp_path / f"{name}.mkv"
        generate_images("a small heart", model=tiny, out=path, dtype="float32", **options)
        made[name] = decoded(path)
    assert not np.array_equal(made["plain"], made["motion"])
    assert not np.array_equal(made["plain"], made["appearance"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": "euler"}, ConfigError, "solver 'euler' does not apply: tiny-video makes clips, with ddim alone"),
        ({"frames": 3}, InputError, "3 frames are fewer than the 4 that this model"),
        ({"motion": 5000}, InputError, "motion 5000 lies above 1000"),
    ],
)
def test_what_the_model_cannot_do(tiny, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        generate_images("a small heart", model=tiny, out=tmp_path / "out", dtype="float32", **options)

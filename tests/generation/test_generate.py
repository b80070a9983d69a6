"""Requests in, files out: batches, resumption, rejection, several processes, and folders that must not be mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from generation.fake_family import MODEL, FakeFamily, contents, open_fake, pixels, reject_dark, requests
from medisyn import runs
from medisyn.errors import BusyError, InputError
from medisyn.generation import provenance
from medisyn.generation.generate import GenerateReport, batches_of, default_batch_size, draw, generate
from medisyn.types import Request


def make(asked: list[Request], out: Path, family: FakeFamily | None = None, **options: Any) -> GenerateReport:
    return generate(asked, family or FakeFamily(), out, model=options.pop("model", MODEL), **options)


def records(out: Path) -> list[dict[str, Any]]:
    return runs.read_jsonl(out / "metadata.jsonl")


def test_pictures_and_metadata_are_what_was_asked_for(tmp_path: Path) -> None:
    asked = requests(3, metadata={"specialty": "radiology"})
    report = make(asked, tmp_path / "out")
    assert (report.made, report.skipped, report.rejected, report.out) == (3, 0, 0, tmp_path / "out")
    assert [r["file_name"] for r in records(tmp_path / "out")] == ["000.png", "001.png", "002.png"]
    for request, record in zip(asked, records(tmp_path / "out"), strict=True):
        path = tmp_path / "out" / record["file_name"]
        assert record == provenance.read(path)
        assert (record["text"], record["seed"], record["specialty"]) == (request.prompt, request.seed, "radiology")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels(request).transpose(1, 2, 0))


def test_batch_size_changes_no_byte(tmp_path: Path) -> None:
    for size in (1, 3, 7):
        make(requests(7), tmp_path / str(size), batch_size=size)
    assert contents(tmp_path / "1") == contents(tmp_path / "3") == contents(tmp_path / "7")
    assert len(contents(tmp_path / "1")) == 9


@given(st.lists(st.tuples(st.sampled_from([None, 8, 16]), st.sampled_from([10, 20])), max_size=20), st.integers(1, 5))
@settings(deadline=None)
def test_batches_hold_every_request_once_and_do_not_mix(settings_: list[tuple[Any, int]], size: int) -> None:
    asked = [Request(str(i), "p", i, height=side, width=side, steps=steps) for i, (side, steps) in enumerate(settings_)]
    batches = batches_of(asked, size)
    assert sorted(r.key for batch in batches for r in batch) == sorted(r.key for r in asked)
    assert all(len({(r.height, r.steps) for r in batch}) == 1 and len(batch) <= size for batch in batches)
    assert len(batches) == sum(-(-settings_.count(kind) // size) for kind in set(settings_))


def test_default_batch_size_by_hand() -> None:
    sizes = [(None, None), (128, 128), (512, 512), (512, 1024), (1024, 1024), (2048, 2048)]
    assert [default_batch_size(*size) for size in sizes] == [8, 8, 4, 2, 1, 1]


def test_the_same_call_again_makes_nothing(tmp_path: Path) -> None:
    make(requests(3), tmp_path)
    before, family = contents(tmp_path), FakeFamily()
    report = make(requests(3), tmp_path, family)
    assert (report.made, report.skipped, family.batches) == (0, 3, [])
    assert contents(tmp_path) == before
    assert report.seconds_per_image is None
    assert "3 pictures, none left to make, 3 there before" in report.summary()


def test_absent_and_damaged_pictures_are_made_again(tmp_path: Path) -> None:
    make(requests(4), tmp_path)
    before = contents(tmp_path)
    (tmp_path / "001.png").unlink()
    (tmp_path / "002.png").write_bytes(before["002.png"][:-20])
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / ".003.png.abc.tmp").write_bytes(b"half")
    family = FakeFamily()
    report = make(requests(4), tmp_path, family)
    assert (report.made, report.skipped, family.batches) == (2, 2, [["001", "002"]])
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_requests_may_be_added(tmp_path: Path) -> None:
    make(requests(2), tmp_path / "grown")
    report = make(requests(5), tmp_path / "grown")
    make(requests(5), tmp_path / "at_once")
    assert (report.made, report.skipped) == (3, 2)
    assert contents(tmp_path / "grown") == contents(tmp_path / "at_once")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:2], r"also holds '002' \('prompt 2'\), which is no longer asked for"),
        (
            lambda r: [r[0], replace(r[1], prompt="other"), r[2]],
            "holds '001' with prompt 'prompt 1', now it is 'other'",
        ),
        (lambda r: [replace(x, seed=9) for x in r], "holds '000' with seed 1000, now it is 9"),
        (lambda r: [replace(x, steps=9) for x in r], "holds '000' with steps None, now it is 9"),
        (lambda r: [replace(x, metadata={"a": 1}) for x in r], r"with metadata \{\}, now it is \{'a': 1\}"),
        (lambda r: [replace(x, prompt="x" * 200) for x in r], r"now it is 'x{59}\.\.\.\. Choose another --out"),
    ],
)
def test_other_requests_are_refused_and_nothing_is_touched(tmp_path: Path, change: Any, message: str) -> None:
    make(requests(3), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        make(change(requests(3)), tmp_path)
    assert contents(tmp_path) == before


def test_another_model_is_refused_but_a_moved_one_is_not(tmp_path: Path) -> None:
    make(requests(1), tmp_path)
    with pytest.raises(InputError, match=r"was made with digest '0123.*\(model 'fake'\), now it is 'ffff' \('fake'\)"):
        make(requests(1), tmp_path, model={**MODEL, "digest": "ffff"})
    with pytest.raises(InputError, match=r"was made with solver 'euler'.*now it is 'dpmpp-2m'"):
        make(requests(1), tmp_path, model={**MODEL, "solver": "dpmpp-2m"})
    assert make(requests(1), tmp_path, model={**MODEL, "id": "moved/fake"}).skipped == 1


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"photos/ holds pictures but no run.json"):
        make(requests(1), tmp_path / "photos")
    runs.write_run(tmp_path / "training", kind="train")
    with pytest.raises(InputError, match=r"training/ holds a train run"):
        make(requests(1), tmp_path / "training")
    with runs.lock(tmp_path / "busy"), pytest.raises(BusyError, match="another process is writing to busy/"):
        make(requests(1), tmp_path / "busy")


def test_requests_that_cannot_be_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the list of requests is empty"):
        make([], tmp_path)
    with pytest.raises(InputError, match="the key '000' occurs twice"):
        make([*requests(2), *requests(1)], tmp_path)
    with pytest.raises(InputError, match="request 000: metadata 'model' is a name that MediSyn writes"):
        make(requests(1, metadata={"model": "x"}), tmp_path)
    with pytest.raises(InputError, match="batch size must be at least 1, got 0"):
        make(requests(1), tmp_path, batch_size=0)
    with pytest.raises(InputError, match="tries must be at least 1, got 0"):
        make(requests(1), tmp_path, tries=0)
    with pytest.raises(InputError, match="give `family` for the engine 'inline'"):
        make(requests(1), tmp_path, engine="processes:2")


def test_rejected_draws_are_drawn_again_with_another_seed(tmp_path: Path) -> None:
    asked = requests(40)
    corners = {r.key: [int(pixels(draw(r, attempt))[0, 0, 0]) for attempt in range(3)] for r in asked}
    expected = {key: next((i for i, corner in enumerate(c) if corner >= 128), None) for key, c in corners.items()}
    assert {0, 1, 2, None} == set(expected.values())  # the seeds chosen here reach every case

    report = make(asked, tmp_path, reject=reject_dark, tries=3)
    got = {r["key"]: r for r in records(tmp_path)}
    assert {key: got[key]["tries"] - 1 if key in got else None for key in expected} == expected
    for request in asked:
        if (attempt := expected[request.key]) is not None:
            record = got[request.key]
            assert record["seed"] == draw(request, attempt).seed
            assert record["rejected_reasons"] == "; ".join(["dark corner"] * attempt)
            image = np.asarray(Image.open(tmp_path / record["file_name"]))
            np.testing.assert_array_equal(image, pixels(draw(request, attempt)).transpose(1, 2, 0))
    lost = [key for key, attempt in expected.items() if attempt is None]
    assert report.rejected == len(lost) == 40 - report.made
    assert sorted(path.stem for path in (tmp_path / "rejected").iterdir()) == lost
    assert json.loads((tmp_path / "rejected" / f"{lost[0]}.json").read_text())["reasons"] == ["dark corner"] * 3


def test_rejected_requests_are_not_tried_again(tmp_path: Path) -> None:
    first = make(requests(40), tmp_path, reject=reject_dark, tries=1)
    family = FakeFamily()
    second = make(requests(40), tmp_path, family, reject=reject_dark, tries=1)
    assert (second.made, second.skipped, second.rejected) == (0, first.made, first.rejected)
    assert family.batches == []
    assert f"{first.rejected} rejected" in second.summary()


def test_lost_words_are_told_once_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [Request("a", "one two three", 1), Request("b", "one two three", 2), Request("c", "one", 3)]
    report = make(asked, tmp_path, lost_words=lambda prompt: " ".join(prompt.split()[2:]))
    assert [r["lost_words"] for r in records(tmp_path)] == ["three", "three", ""]
    assert report.as_dict()["lost_words"] == {"one two three": "three"}
    assert capsys.readouterr().err.count("longer than the model reads; lost: three") == 1


class StopsAfterTwo(FakeFamily):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def sample(self, asked: Any) -> Any:
        if len(self.batches) == 2:
            raise self.error
        return super().sample(asked)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("oops")])
def test_an_interruption_keeps_and_lists_what_is_there(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        make(requests(6), tmp_path / "stopped", StopsAfterTwo(error), batch_size=2)
    assert [r["key"] for r in records(tmp_path / "stopped")] == ["000", "001", "002", "003"]
    assert make(requests(6), tmp_path / "stopped").made == 2
    make(requests(6), tmp_path / "straight")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_run_json_names_model_and_sums_the_timing(tmp_path: Path) -> None:
    make(requests(2), tmp_path)
    make(requests(5), tmp_path, FakeFamily(seconds=0.01))
    run = runs.read_run(tmp_path)
    assert run is not None
    assert (run["kind"], run["model"], run["requests"], run["timing"]["pictures"]) == ("generate", MODEL, 5, 5)
    assert run["timing"]["seconds"] >= 0.01


def test_two_processes_write_the_same_files_as_one(tmp_path: Path) -> None:
    asked = requests(12, metadata={"labels": ["a", "b"]})
    make(asked, tmp_path / "one", batch_size=2, reject=reject_dark)
    report = generate(
        asked, None, tmp_path / "two", model=MODEL, batch_size=2, engine="processes:2", open_family=open_fake,
        reject=reject_dark,
    )  # fmt: skip
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert report.made + report.rejected == 12


def test_the_folder_loads_as_an_imagefolder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    prompt = "Röntgen «Thorax» 胸部"
    asked = [replace(r, prompt=prompt, metadata={"specialty": "radiology"}) for r in requests(40)]
    make(asked, tmp_path / "out", reject=reject_dark)
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == len(records(tmp_path / "out")) < 40
    row = {r["key"]: r for r in loaded}["003"]
    assert (row["text"], row["specialty"], row["image"].size) == (prompt, "radiology", (16, 16))

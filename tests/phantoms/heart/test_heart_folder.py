"""A folder of heart phantoms: files that open, one table, and the same files after a kill."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from medisyn import runs
from medisyn.corpus.curate import curate
from medisyn.errors import BusyError, InputError
from medisyn.phantoms.heart import draw_case, make_heart, write_heart_phantoms
from medisyn.phantoms.heart.folder import read_frames, write_heart_phantom
from medisyn.seeding import seed_for

FILM = {"size": (48, 84), "frames": 3, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("hearts") / "out"
    report = write_heart_phantoms(out, 3, **FILM)
    assert (report.count, report.there_before) == (3, 0)
    return out


def test_the_files_hold_the_phantom(folder):
    seed = seed_for(5, "heart-000001")
    made = make_heart(seed, draw_case(seed), size=(48, 84), frames=3)
    one = folder / "heart-000001"
    np.testing.assert_array_equal(read_frames(one / "clip.mkv"), made.clip.array_CTHW[0])
    with np.load(one / "masks.npz") as masks:
        np.testing.assert_array_equal(masks["labels_THW"], made.labels_THW)
        np.testing.assert_array_equal(masks["sector_HW"], made.sector_HW)
    assert (one / "caption.txt").read_text() == made.caption + "\n"
    record = json.loads((one / "truth.json").read_text())
    assert record["truth"] == made.truth
    assert record["seed"] == seed


def test_a_clip_without_loss_at_its_rate_and_the_same_bytes(tmp_path):
    import av

    phantom = make_heart(3, size=(64, 85), frames=5)
    for name in "ab":
        (tmp_path / name).mkdir()
        write_heart_phantom(tmp_path / name, phantom)
    assert (tmp_path / "a" / "clip.mkv").read_bytes() == (tmp_path / "b" / "clip.mkv").read_bytes()
    np.testing.assert_array_equal(read_frames(tmp_path / "a" / "clip.mkv"), phantom.clip.array_CTHW[0])
    with av.open(str(tmp_path / "a" / "clip.mkv")) as container:
        assert float(container.streams.video[0].average_rate) == 12.5
        assert container.streams.video[0].codec_context.name == "ffv1"


def test_the_table_has_a_row_for_each(folder):
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    records = runs.read_jsonl(folder / "phantoms.jsonl")
    assert [row["key"] for row in rows] == [record["key"] for record in records]
    for row, record in zip(rows, records, strict=True):
        assert (folder / row["clip"]).is_file()
        assert (folder / row["masks"]).is_file()
        assert float(row["ejection_fraction"]) == record["truth"]["ejection_fraction"]
        assert row["caption"] == record["caption"]


def test_what_is_missing_is_made_again_and_more_may_be_added(folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    before = (out / "heart-000002" / "clip.mkv").read_bytes()
    kept = (out / "heart-000000" / "clip.mkv").stat().st_mtime_ns
    (out / "heart-000001" / "masks.npz").unlink()
    (out / "heart-000002" / "truth.json").write_text("{")
    (out / ".heart-000002.abcdefgh.tmp").mkdir()
    seen = []
    report = write_heart_phantoms(out, 4, **FILM, progress=lambda done, total: seen.append((done, total)))
    assert (report.count, report.there_before) == (4, 1)
    assert seen == [(4, 4)]
    assert (out / "heart-000002" / "clip.mkv").read_bytes() == before
    assert (out / "heart-000000" / "clip.mkv").stat().st_mtime_ns == kept
    assert not list(out.glob(".*.tmp"))
    assert runs.read_run(out)["phantoms"] == 4
    assert "4 heart phantoms in" in report.text()


def test_a_folder_from_before_a_setting_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    for file in (out / "run.json", *out.glob("heart-*/truth.json")):
        content = json.loads(file.read_text())
        del content["vigorous"]
        file.write_text(json.dumps(content))
    assert write_heart_phantoms(out, 4, **FILM).there_before == 3
    with pytest.raises(InputError, match="holds phantoms with vigorous"):
        write_heart_phantoms(out, 4, **FILM, vigorous=0.5)


def test_another_process_makes_the_same_files(folder, tmp_path):
    write_heart_phantoms(tmp_path / "out", 3, **FILM, engine="processes:1")
    for path in sorted(folder.rglob("*.*")):
        if path.name != "run.json":
            assert (tmp_path / "out" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_vigorous_hearts_are_another_folder(folder, tmp_path):
    write_heart_phantoms(tmp_path / "fast", 3, **FILM, vigorous=1.0)
    rates = [record["truth"]["heart_rate"] for record in runs.read_jsonl(tmp_path / "fast" / "phantoms.jsonl")]
    assert min(rates) >= 80
    with pytest.raises(InputError, match="holds phantoms with vigorous"):
        write_heart_phantoms(folder, 3, **FILM, vigorous=1.0)


def test_curate_reads_the_folder(folder, tmp_path):
    report = curate(folder / "source.yaml", tmp_path / "corpus")
    assert (report.read, report.kept, report.quarantined) == (3, 3, 0)


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="count must be at least 1, got 0"):
        write_heart_phantoms(tmp_path / "none", 0)
    with pytest.raises(InputError, match="'poor' is not allowed"):
        write_heart_phantoms(tmp_path / "none", 1, grades=("poor",))
    with pytest.raises(InputError, match="height and width"):
        write_heart_phantoms(tmp_path / "none", 1, size=(8, 8))
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="holds phantoms with frames 3, now it is 4"):
        write_heart_phantoms(folder, 3, size=(48, 84), frames=4, seed=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds files that are not of `medisyn phantom`"):
        write_heart_phantoms(tmp_path / "mine", 1)
    runs.write_run(tmp_path / "other", kind="generate")
    with pytest.raises(InputError, match="holds a generate run"):
        write_heart_phantoms(tmp_path / "other", 1)
    with runs.lock(tmp_path / "busy"), pytest.raises(BusyError, match="another process"):
        write_heart_phantoms(tmp_path / "busy", 1)

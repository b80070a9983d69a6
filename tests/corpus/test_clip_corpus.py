"""From videos and a table to a corpus of clips: shards, windows, quarantine, resume, processes, refusals."""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import build_dicom
import build_source
import build_video
from build_video import moving, write
from medisyn import runs
from medisyn.corpus import curate as curate_module
from medisyn.corpus import parts
from medisyn.corpus.checks import summary, summary_text, verify
from medisyn.corpus.clips import clip_preset, framing, window
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.corpus.shards import INDEX
from medisyn.corpus.splits import Shares
from medisyn.errors import ConfigError, CorpusError, InputError

TAKE = {"kind": "clip", "captions": ["Ultrasound clip[ showing {finding}]"], "labels": ["{finding}"]}
SQUARE = (24, 24)  # 16 x 28 pixels in the corpus: 16 real columns and 6 black ones on each side


def described(folder: Path, **changes):
    return build_source.source(folder, **{"samples": [TAKE], "image_type": "ultrasound", **changes})


def videos(folder: Path, count: int = 8, frames: int = 9) -> list[dict[str, str]]:
    """`count` lossless clips of 9 frames and more in four containers, two per patient, and their table."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [("mp4", "libx264rgb", "rgb24"), ("mkv", "ffv1", "bgr0"), ("avi", "rawvideo", "bgr24")]
    kinds.append(("mov", "libx264rgb", "rgb24"))
    rows = []
    for n in range(count):
        suffix, codec, pixel_format = kinds[n % 4]
        write(folder / f"{n}.{suffix}", moving(frames + n, *SQUARE, seed=n), codec, pixel_format)
        rows.append({"file": f"{n}.{suffix}", "patient": f"p{n // 2}", "finding": ("", "effusion")[n % 2]})
    build_source.write_table(folder / "table.csv", rows)
    return rows


def reasons(folder):
    return [entry["reason"] for entry in runs.read_jsonl(folder / "quarantine.jsonl")]


def tree(folder: Path) -> dict[str, bytes]:
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "run.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("clips")
    videos(base / "files")
    curate(described(base / "files"), base / "corpus")
    return base / "corpus"


def test_clips_are_whole_at_the_size_of_the_description(folder):
    corpus = Corpus(folder)
    assert not verify(folder).problems
    assert sorted(row.frames for row in corpus.rows()) == list(range(9, 17))
    place = framing(clip_preset("medisyn-v1-video", height=16), *SQUARE)
    expected = {9 + n: moving(9 + n, *SQUARE, seed=n) for n in range(8)}
    for row in corpus.rows():
        sample = corpus.read(row)
        shown = np.stack([place(frame) for frame in expected[row.frames].transpose(1, 0, 2, 3)], axis=1)
        np.testing.assert_array_equal(sample.item.array_CTHW, shown)
        assert sample.item.array_CTHW.shape == (3, row.frames, 16, 28)
        assert (row.fps, row.valid, row.original_size) == (25.0, (0, 6, 16, 22), SQUARE)
        assert sample.item.frames_per_second == 25.0
        np.testing.assert_array_equal(sample.masks["valid"][0, 0], [0] * 6 + [1] * 16 + [0] * 6)
    assert len({row.patient for row in corpus.rows()}) == 4


def test_the_index_the_tar_and_the_sidecar(folder):
    table = pq.read_table(folder / INDEX)
    assert table.schema.metadata[b"medisyn_format"] == b"2"
    assert {"frames", "fps", "valid"} <= set(table.column_names)
    for row in Corpus(folder).rows():
        with tarfile.open(folder / row.shard) as shard:
            names = [name for name in shard.getnames() if name.startswith(row.key)]
            facts = json.loads(shard.extractfile(f"{row.key}.json").read())
        assert names == [f"{row.key}.{end}" for end in ("mkv", "txt", "json")]
        assert (facts["frames"], facts["fps"], facts["valid"]) == (row.frames, 25.0, "0 6 16 22")


def test_a_window_that_is_decoded_alone_equals_the_window_of_the_whole(folder):
    corpus = Corpus(folder)
    for row in corpus.rows():
        for frames in (1, 8, 32):
            alone = corpus.read_window(row, frames, np.random.default_rng(row.frames))
            whole = window(corpus.read(row), frames, np.random.default_rng(row.frames))
            np.testing.assert_array_equal(alone.item.array_CTHW, whole.item.array_CTHW)
            np.testing.assert_array_equal(alone.masks["valid"], whole.masks["valid"])
            assert alone.metadata == whole.metadata
            assert alone.item.frames_per_second == whole.item.frames_per_second


def test_show_and_card_count_frames(folder):
    counted = summary(folder)
    assert counted["frames"] == {"total": sum(range(9, 17)), "fewest": 9, "most": 16}
    assert "clips of 9 to 16 frames, 100 in all" in summary_text(counted)
    text = (folder / "README.md").read_text()
    assert "100 frames in 8 clips of 9 to 16 frames (median 13); frames per second: 25." in text
    assert "frames of 16 x 28 pixels (height x width), FFV1 in Matroska" in text
    assert yaml.safe_load(text.split("---")[1])["task_categories"] == ["text-to-video"]
    assert 'cast_column("mkv", Video(decode=False))' in text
    assert "key.png" not in text


def test_datasets_opens_the_shards(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {"train": str(folder / "data" / "train-*.tar")}
    loaded = datasets.load_dataset("webdataset", data_files=files, streaming=True, cache_dir=str(tmp_path))
    items = list(loaded["train"].cast_column("mkv", datasets.Video(decode=False)))
    rows = {row.key: row for row in Corpus(folder).rows("train")}
    assert {item["__key__"] for item in items} == set(rows)
    assert all(item["json"]["frames"] == rows[item["__key__"]].frames for item in items)


def test_bad_videos_and_rows_of_text_alone_are_set_aside(tmp_path):
    files = tmp_path / "files"
    rows = videos(files, 4)
    whole = write(files / "cut.mp4", moving(40, *SQUARE), container={"movflags": "faststart"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write(files / "single.mp4", moving(1, *SQUARE))
    write(files / "black.mp4", np.zeros((3, 4, 24, 24), dtype=np.uint8))
    write(files / "long.mp4", moving(41, *SQUARE))
    build_video.sound_only(files / "sound.mp4")
    (files / "text.mp4").write_text("Jane Doe\n" * 99)
    bad = ("cut", "single", "black", "long", "sound", "text", "missing")
    rows += [{"file": f"{name}.mp4", "patient": name, "finding": "x"} for name in bad]
    rows += [{"file": "", "patient": "p8", "finding": f"text alone {n}"} for n in range(2)]
    build_source.write_table(files / "table.csv", rows)
    report = curate(described(files, samples=[{**TAKE, "most_frames": 40}]), tmp_path / "corpus")
    assert (report.kept, report.quarantined) == (4, 9)
    found = reasons(tmp_path / "corpus")
    assert found.count("the row names no file; a caption alone is no sample") == 2
    text = " | ".join(found)
    for part in (
        "MP4 file is cut short",
        "holds one frame, and a clip needs at least 2",
        "every pixel of every frame is 0: the clip is empty",
        "the clip has 41 frames, and at most 40 are stored",
        "the MP4 file holds no video",
        "the file holds text, not an image",
        "the file that the table names is missing",
    ):
        assert part in text
    assert "Jane" not in text
    assert not verify(tmp_path / "corpus").problems


def test_dicom_volumes_and_stacks_become_clips(tmp_path):
    files = tmp_path / "files"
    build_dicom.series(files / "series", [[0, 0, 3 * z] for z in range(5)])
    voxels = np.random.default_rng(0).integers(0, 500, (20, 24, 9)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 4.0, 1.0])), files / "mr.nii")
    frames = moving(6, 20, 30, channels=1)[0]
    tags = {"NumberOfFrames": 6, "Modality": "US", "ImageOrientationPatient": None, "FrameTime": 40}
    build_dicom.save(build_dicom.image(frames, RescaleSlope=None, RescaleIntercept=None, **tags), files / "us.dcm")
    named = {"series": "ct", "mr.nii": "mr", "us.dcm": "us"}
    rows = [{"file": name, "patient": name, "kind": kind} for name, kind in named.items()]
    build_source.write_table(files / "table.csv", rows)
    ct = {"captions": ["CT clip, {window}, {plane}"], "where": {"kind": "ct"}, "windows": {"w": [4000, 500]}}
    mr = {"captions": ["MR clip, {plane}"], "where": {"kind": "mr"}, "intensity": "percentile", "plane": "coronal"}
    us = {"captions": ["US clip"], "where": {"kind": "us"}}
    takes = [{**TAKE, "labels": [], **one} for one in (ct, {**mr, "every": 2, "between": [0.25, 0.75]}, us)]
    report = curate(described(files, samples=takes, fields={}), tmp_path / "corpus")
    assert report.kept == 3, reasons(tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    by_caption = {row.caption: row for row in corpus.rows()}
    ct, mr, us = (by_caption[text] for text in ("CT clip, w, axial", "MR clip, coronal", "US clip"))
    assert (ct.frames, ct.fps, ct.spacing is not None) == (5, None, True)
    assert (mr.frames, mr.fps) == (6, None)  # slices 6, 8, ..., 16 of 24
    assert (us.frames, us.fps, us.original_size) == (6, 25.0, (20, 30))
    place = framing(clip_preset("medisyn-v1-video", height=16), 20, 30)
    np.testing.assert_array_equal(corpus.read(us).item.array_CTHW[:, 3], place(frames[None, 3]))
    assert json.loads((tmp_path / "corpus" / "run.json").read_text())["report"]["kept"] == 3
    assert "frames per second: 25, not known of 2." in (tmp_path / "corpus" / "README.md").read_text()


def test_an_intensity_step_is_not_for_videos_and_as_is_not_for_raw_values(tmp_path):
    files = tmp_path / "files"
    videos(files, 2)
    with pytest.raises(CorpusError, match="a video holds grey levels or colours already"):
        curate(described(files, samples=[{**TAKE, "intensity": "percentile"}]), tmp_path / "a")
    with pytest.raises(CorpusError, match="`between` and `every` leave 1, and a clip needs at least 2"):
        curate(described(files, samples=[{**TAKE, "every": 50}]), tmp_path / "b")
    raw = np.random.default_rng(0).integers(0, 4000, (3, 20, 20)).astype(np.uint16)
    tags = {"NumberOfFrames": 3, "Modality": "US", "ImageOrientationPatient": None}
    dicom = build_dicom.image(raw, RescaleSlope=None, RescaleIntercept=None, **tags)
    build_dicom.save(dicom, files / "raw.dcm")
    build_source.write_table(files / "table.csv", [{"file": "raw.dcm", "patient": "p", "finding": ""}])
    with pytest.raises(CorpusError, match=r"the clip holds raw values from .*, not grey levels"):
        curate(described(files), tmp_path / "c")
    build_source.write_table(files / "table.csv", [{"file": "a.png", "patient": "p", "finding": ""}])
    build_source.files(tmp_path / "pictures", 1)
    shutil.copy(tmp_path / "pictures" / "0.png", files / "a.png")
    with pytest.raises(CorpusError, match="the file holds one frame, and a clip needs at least 2"):
        curate(described(files), tmp_path / "d")


def test_every_nth_frame_lowers_the_rate(tmp_path):
    videos(tmp_path / "files", 2, frames=20)
    curate(described(tmp_path / "files", samples=[{**TAKE, "every": 4, "between": [0.5, 1.0]}]), tmp_path / "corpus")
    rows = Corpus(tmp_path / "corpus").rows()
    assert {(row.frames, row.fps) for row in rows} == {(3, 6.25)}


def test_the_same_clip_in_two_containers_stays_in_one_split(tmp_path):
    files = tmp_path / "files"
    rows = videos(files, 16, frames=3)
    for n in range(0, 16, 4):  # every fourth clip again, as another patient's
        write(files / f"again-{n}.mkv", moving(3 + n, *SQUARE, seed=n), "ffv1", "bgr0")
        rows.append({"file": f"again-{n}.mkv", "patient": f"q{n}", "finding": ""})
    build_source.write_table(files / "table.csv", rows)
    curate(described(files), tmp_path / "corpus", shares=Shares.parse("40:30:30"))
    splits: dict[str, set[str]] = {}
    for row in Corpus(tmp_path / "corpus").rows():
        splits.setdefault(row.sha256, set()).add(row.split)
    assert len(splits) == 16
    assert all(len(found) == 1 for found in splits.values())
    assert len({next(iter(found)) for found in splits.values()}) > 1


def test_one_and_two_processes_write_the_same_files(tmp_path, folder):
    source = described(folder.parent / "files")
    curate(source, tmp_path / "corpus", engine="processes:2")
    assert tree(tmp_path / "corpus") == tree(folder)


def test_an_interrupted_curation_keeps_its_clips(tmp_path, folder, monkeypatch):
    source, made = described(folder.parent / "files"), []
    write_clip = parts.write_clip

    def interrupted(preset, footage):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(1)
        return write_clip(preset, footage)

    monkeypatch.setattr(parts, "write_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        curate(source, tmp_path / "corpus")
    assert not (tmp_path / "corpus" / INDEX).exists()
    monkeypatch.setattr(parts, "write_clip", lambda *arguments: (made.append(1), write_clip(*arguments))[1])
    curate(source, tmp_path / "corpus")
    assert len(made) == 8  # a clip is a part of its own here, so none is made twice
    assert tree(tmp_path / "corpus") == tree(folder)
    monkeypatch.setattr(curate_module, "map_shards", None)  # a third call finds everything done
    assert curate(source, tmp_path / "corpus").kept == 8


def test_pictures_and_clips_or_two_aspects_do_not_mix(tmp_path):
    videos(tmp_path / "files", 2)
    whole = {"kind": "whole", "captions": ["x"]}
    with pytest.raises(ConfigError, match=r"make pictures and clips\. Curate them into two corpora"):
        curate(described(tmp_path / "files", samples=[TAKE, whole]), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"clips of the aspects 1 and 1.75, but a model learns from one"):
        curate(described(tmp_path / "files", samples=[TAKE, {**TAKE, "aspect": 1.0}]), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"clip preset 'short-side-crop' is unknown"):
        curate(described(tmp_path / "files", samples=[{**TAKE, "geometry": "short-side-crop"}]), tmp_path / "c")


def test_the_kinds_for_pictures_name_the_kind_for_clips(tmp_path):
    videos(tmp_path / "files", 1)
    for kind in ("whole", "slices"):
        take = {"kind": kind, "captions": ["x"]}
        with pytest.raises(CorpusError, match=r"the file holds a Clip; use the kind clip"):
            curate(described(tmp_path / "files", samples=[take]), tmp_path / kind)


def test_a_changed_clip_is_found(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    row = corpus.rows()[0]
    content = bytearray((tmp_path / "corpus" / row.shard).read_bytes())
    content[row.offset + row.size // 2] ^= 1
    (tmp_path / "corpus" / row.shard).write_bytes(content)
    with pytest.raises(CorpusError, match=f"{row.key}: its clip in .* was changed"):
        corpus.read(row)
    with pytest.raises(CorpusError, match=f"{row.key}: its clip in .* was changed"):
        corpus.read_window(row, 4, np.random.default_rng(0))
    assert "its clip was changed (sha256 differs)" in " ".join(verify(tmp_path / "corpus").problems)


def test_a_window_of_a_picture_is_refused(tmp_path):
    build_source.files(tmp_path / "files", 4)
    curate(build_source.source(tmp_path / "files"), tmp_path / "corpus")
    corpus = Corpus(tmp_path / "corpus")
    with pytest.raises(InputError, match="a window is drawn from a clip, and this sample is a picture"):
        corpus.read_window(corpus.rows()[0], 4, np.random.default_rng(0))
    assert pq.read_table(tmp_path / "corpus" / INDEX).schema.metadata[b"medisyn_format"] == b"1"
    assert dataclasses.astuple(corpus.rows()[0])[-3:] == (None, None, None)


def test_real_dicom_clip_end_to_end(shared_data, tmp_path):
    report = curate("dicom_us_clip", tmp_path / "corpus", root=shared_data / "open", size=32)
    assert (report.read, report.kept, report.quarantined) == (3, 1, 2)
    corpus = Corpus(tmp_path / "corpus")
    row = corpus.rows()[0]
    assert (row.caption, row.frames, row.original_size) == ("US clip of 30 frames", 30, (240, 320))
    assert corpus.read(row).item.array_CTHW.shape == (3, 30, 32, 56)
    assert not verify(tmp_path / "corpus").problems

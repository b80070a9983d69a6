"""Shards are plain deterministic tar files; the index finds each picture by offset."""

import dataclasses
import hashlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisyn.corpus import shards
from medisyn.corpus.shards import Entry, Row
from medisyn.errors import CorpusError


def row(**changes):
    base = Row(
        key="k",
        shard="data/train-00000.tar",
        offset=512,
        size=3,
        split="train",
        specialty="radiology",
        image_type="ultrasound",
        caption="Ultrasound image",
        labels=("a", "b"),
        patient="p-1",
        source="s",
        licence="MIT",
        sha256="0" * 64,
        phash="0" * 16,
        low=0.0,
        high=255.0,
        unit="uint8",
        spacing=None,
    )
    return dataclasses.replace(base, **changes)


@given(st.lists(st.binary(max_size=1200), min_size=1, max_size=6))
def test_a_shard_is_a_tar_whose_pictures_lie_at_their_offsets(pictures):
    stream = io.BytesIO()
    writer = shards.ShardWriter(stream)
    offsets = [writer.add(Entry(f"k{n}", png, f"caption {n}", {"n": n})) for n, png in enumerate(pictures)]
    writer.close()
    content = stream.getvalue()
    assert len(content) % 512 == 0
    for offset, png in zip(offsets, pictures, strict=True):
        assert content[offset : offset + len(png)] == png
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert [info.name for info in tar] == [
            f"k{n}.{end}" for n in range(len(pictures)) for end in ("png", "txt", "json")
        ]
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}
        assert tar.extractfile("k0.txt").read() == b"caption 0"
        assert tar.extractfile("k0.json").read() == b'{"n": 0}'


def test_the_same_samples_give_the_same_bytes(tmp_path):
    entries = [Entry("a", b"png a", "A", {"z": 1, "a": "ü"}), Entry("b", b"png b", "B", {})]
    for name in ("one.tar", "two.tar"):
        shards.write_shard(tmp_path / name, entries)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_an_error_leaves_no_shard(tmp_path):
    def entries():
        yield Entry("a", b"png", "A", {})
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        shards.write_shard(tmp_path / "one.tar", entries())
    assert list(tmp_path.iterdir()) == []


def test_the_index_round_trips(tmp_path):
    rows = [row(), row(key="l", spacing=(0.5, 0.25), labels=(), caption="Größe, 1 µm")]
    shards.write_index(tmp_path / shards.INDEX, rows)
    assert shards.read_index(tmp_path) == rows


def test_an_index_without_the_later_columns_still_opens(tmp_path):
    import pyarrow.parquet as pq

    known = row(original_height=480, original_width=640, crop_top=0, crop_left=21)
    assert (known.original_size, known.crop_top_left) == ((480, 640), (0, 21))
    shards.write_index(tmp_path / shards.INDEX, [known])
    assert shards.read_index(tmp_path) == [known]
    table = pq.read_table(tmp_path / shards.INDEX).drop_columns(list(shards.LATER_COLUMNS))
    pq.write_table(table, tmp_path / shards.INDEX)
    (old,) = shards.read_index(tmp_path)
    assert old == row()
    assert (old.original_size, old.crop_top_left) == (None, None)
    assert set(shards.LATER_COLUMNS).isdisjoint(shards.sidecar(old))
    assert shards.sidecar(known)["crop_left"] == 21


def test_missing_and_broken_indexes_are_named(tmp_path):
    with pytest.raises(CorpusError, match="not a corpus"):
        shards.read_index(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(CorpusError, match="has not finished: repeat the command"):
        shards.read_index(tmp_path)
    (tmp_path / shards.INDEX).write_bytes(b"not parquet")
    with pytest.raises(CorpusError, match="not readable Parquet"):
        shards.read_index(tmp_path)


def test_an_index_of_another_format_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"key": ["a"]}), tmp_path / shards.INDEX)
    with pytest.raises(
        CorpusError, match="corpus format none, this version reads 1 and 2; missing columns: shard, offset"
    ):
        shards.read_index(tmp_path)


def test_reading_outside_a_shard_names_it(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"0123456789")
    assert shards.read_at(tmp_path / "s.tar", 2, 3) == b"234"
    with pytest.raises(CorpusError, match=r"s.tar ends at byte 10, the index expects 12"):
        shards.read_at(tmp_path / "s.tar", 8, 4)
    with pytest.raises(CorpusError, match=r"shard t.tar is missing"):
        shards.read_at(tmp_path / "t.tar", 0, 1)
    with pytest.raises(CorpusError, match="cannot be read"):
        shards.read_at(tmp_path, 0, 1)


def test_packing_by_hand():
    # limits: 10 bytes, 3 samples
    assert shards.pack([4, 4, 4, 1, 1, 1, 20, 2], shard_bytes=10, shard_samples=3) == [
        range(2),
        range(2, 5),
        range(5, 6),
        range(6, 7),
        range(7, 8),
    ]
    assert shards.pack([], shard_bytes=10, shard_samples=3) == []


def test_the_fingerprint_ignores_order_and_place_only():
    rows = [row(), row(key="l")]
    moved = [row(key="l", shard="data/train-00001.tar", offset=0), row()]
    assert shards.fingerprint(rows) == shards.fingerprint(moved)
    assert shards.fingerprint(rows) != shards.fingerprint([row(), row(key="l", caption="other")])
    line = f"k\t{'0' * 64}\ttrain\tUltrasound image"
    assert shards.fingerprint([row()]) == hashlib.sha256(line.encode()).hexdigest()[:16]


def test_sidecars_have_one_type_per_key():
    assert shards.sidecar(row(labels=(), spacing=None)) | {"labels": "a|b", "spacing": "0.5 0.25"} == shards.sidecar(
        row(labels=("a", "b"), spacing=(0.5, 0.25))
    )
    assert {type(value) for value in shards.sidecar(row()).values()} == {str, float}

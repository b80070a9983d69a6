import json

import numpy as np
import pytest
import torch

from build_training import LinearFamily
from medisyn import runs
from medisyn.errors import InputError, ReadError
from medisyn.training.precompute import EncodedStore, precompute
from medisyn.types import Picture, Sample

KEYS = [f"item-{number}" for number in range(7)]


def read(number: int) -> Sample:
    return Sample(KEYS[number], Picture(np.full((6, 2, 2), 30 * number, np.uint8)), f"caption {number}")


def brighter(sample: Sample, variant: int) -> Sample:
    return Sample(sample.key, Picture(sample.item.array_CHW + np.uint8(variant)), sample.caption)


def open_linear():
    return LinearFamily().encode


def encode_all(cache, **changes):
    options = {"encoder": "linear", "corpus": "c0", "shard_rows": 3, "batch_size": 2, **changes}
    return precompute(
        cache, options.pop("keys", KEYS), options.pop("read", read), options.pop("open_encoder", open_linear), **options
    )


def test_rows_are_what_encode_gave(tmp_path):
    store = encode_all(tmp_path)
    assert (len(store), store.keys, store.variants) == (7, KEYS, 1)
    for number in range(7):
        assert torch.equal(store[number]["x"], open_linear()([read(number)])["x"][0])
    assert sorted(path.name for path in next(tmp_path.iterdir()).glob("*.safetensors")) == [
        "rows-00000.safetensors",
        "rows-00001.safetensors",
        "rows-00002.safetensors",
    ]
    with pytest.raises(IndexError):
        store[7]


def test_variants_stand_beside_each_other(tmp_path):
    store = encode_all(tmp_path, variants=2, vary=brighter)
    assert len(store) == 14
    expected = [(30 * number + variant) / 255 for number in range(7) for variant in range(2)]
    got = [float(store[row]["x"][0]) for row in range(14)]
    assert got == pytest.approx(expected, rel=1e-6)


def test_processes_give_the_same_files(tmp_path):
    encode_all(tmp_path / "a")
    encode_all(tmp_path / "b", engine="processes:2")
    first, second = (sorted(path.rglob("*.safetensors")) for path in (tmp_path / "a", tmp_path / "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_what_is_there_is_not_encoded_again(tmp_path):
    encode_all(tmp_path)
    encode_all(tmp_path, open_encoder=lambda: pytest.fail("the store was whole"))


def test_an_interrupted_run_goes_on(tmp_path):
    calls = []

    def counting(number):
        calls.append(number)
        if number == 5 and len(calls) < 8:
            raise KeyboardInterrupt
        return read(number)

    with pytest.raises(KeyboardInterrupt):
        encode_all(tmp_path, read=counting)
    calls.clear()
    calls.extend([-1] * 8)
    encode_all(tmp_path, read=counting)
    assert calls[8:] == [3, 4, 5, 6]  # the first shard of three was whole


def test_a_shard_without_its_record_or_changed_is_made_again(tmp_path):
    encode_all(tmp_path)
    folder = next(tmp_path.iterdir())
    (folder / "manifest.json").unlink()
    (folder / "rows-00000.json").unlink()
    (folder / "rows-00001.safetensors").write_bytes(b"cut short")
    store = encode_all(tmp_path)
    assert torch.equal(store[4]["x"], open_linear()([read(4)])["x"][0])


@pytest.mark.parametrize("change", [{"encoder": "other"}, {"corpus": "c1"}, {"variants": 2, "vary": brighter}])
def test_the_address_holds_all_that_decides_the_rows(tmp_path, change):
    encode_all(tmp_path)
    encode_all(tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"cut short")])
def test_a_shard_that_is_missing_or_cut_short_is_noticed_on_opening(tmp_path, damage):
    encode_all(tmp_path)
    folder = next(tmp_path.iterdir())
    damage(folder / "rows-00001.safetensors")
    with pytest.raises(ReadError, match=r"rows-00001.safetensors are damaged or missing. Delete the folder"):
        EncodedStore.open(folder)


def test_changed_bytes_are_found_when_they_are_asked_for(tmp_path):
    store = encode_all(tmp_path)
    store.verify()
    path = next(tmp_path.glob("*/rows-00001.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    again = EncodedStore.open(path.parent)
    with pytest.raises(ReadError, match=r"rows-00001.safetensors are damaged"):
        again.verify()


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("item-3", "item-9"), lambda text: text[:50], lambda text: "[]"]
)
def test_a_manifest_that_is_not_the_one_that_was_written_is_refused(tmp_path, change):
    encode_all(tmp_path)
    manifest = next(tmp_path.glob("*/manifest.json"))
    manifest.write_text(change(manifest.read_text()))
    with pytest.raises(ReadError, match=r"manifest.json are damaged or missing"):
        encode_all(tmp_path)


def count_hashes(monkeypatch):
    hashed = []
    real = runs.file_sha256
    monkeypatch.setattr(runs, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    return hashed


def test_shards_are_hashed_when_they_are_written_and_not_when_they_are_opened(tmp_path, monkeypatch):
    hashed = count_hashes(monkeypatch)
    encode_all(tmp_path)
    assert len(hashed) == 3
    encode_all(tmp_path)
    EncodedStore.open(next(tmp_path.iterdir()))
    assert len(hashed) == 3


def test_a_store_whose_manifest_was_not_sealed_is_hashed_once_and_sealed(tmp_path, monkeypatch):
    """As earlier versions wrote them: nothing is encoded again."""
    encode_all(tmp_path)
    manifest = next(tmp_path.glob("*/manifest.json"))
    content = json.loads(manifest.read_text())
    del content["digest"]
    manifest.write_text(json.dumps(content))
    hashed = count_hashes(monkeypatch)
    for _ in range(2):
        encode_all(tmp_path, open_encoder=lambda: pytest.fail("the shards were whole"))
    assert len(hashed) == 3
    assert json.loads(manifest.read_text())["digest"]


def test_rows_that_are_not_finite_name_their_samples(tmp_path):
    def bad_encode(samples):
        rows = torch.zeros(len(samples), 2)
        rows[[number for number, sample in enumerate(samples) if sample.key == "item-3"]] = float("inf")
        return {"mean": rows}

    with pytest.raises(InputError, match=r"infinite mean for sample\(s\) item-3\."):
        encode_all(tmp_path, open_encoder=lambda: bad_encode)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"keys": []}, "nothing to encode: 0 samples"),
        ({"variants": 0}, "with 0 variants"),
        ({"variants": 2}, "need a function that makes them"),
        ({"keys": ["other", *KEYS[1:]]}, "sample 0 is item-0, but its key was said to be other"),
        ({"open_encoder": lambda: lambda samples: {"x": torch.zeros(1, 2)}}, "encode gave 1 rows of x for 2 samples"),
    ],
)
def test_what_is_refused(tmp_path, change, text):
    with pytest.raises(InputError, match=text):
        encode_all(tmp_path, **change)


def test_the_manifest_says_what_it_stands_for(tmp_path):
    encode_all(tmp_path)
    folder = next(tmp_path.iterdir())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert folder.name == runs.digest({"encoder": "linear", "corpus": "c0", "variants": 1, "keys": runs.digest(KEYS)})
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 1]

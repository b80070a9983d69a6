"""Fetching a weight file, from file:// addresses: the same code path, without a network."""

import hashlib
from pathlib import Path

import pytest

from medisyn.errors import ConfigError, ModelError
from medisyn.evaluation.features import load_extractor, weights_cache
from medisyn.evaluation.features.download import OFFLINE, fetch

CONTENT = b"weights" * 1000
START = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture(autouse=True)
def online(monkeypatch):
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.pth"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_fetched_once_and_whole(tmp_path, published):
    target = tmp_path / "cache" / "weights.pth"
    assert fetch(published.as_uri(), target, START) == target
    assert target.read_bytes() == CONTENT
    published.unlink()
    assert fetch(published.as_uri(), target, START).read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["weights.pth"]


def test_a_damaged_copy_is_fetched_again(tmp_path, published):
    target = tmp_path / "weights.pth"
    target.write_bytes(b"half")
    assert fetch(published.as_uri(), target, START).read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(tmp_path, published):
    target = tmp_path / "cache" / "weights.pth"
    with pytest.raises(ModelError, match=r"has sha256 .*, expected 00000000.*Nothing was kept"):
        fetch(published.as_uri(), target, "00000000")
    assert list(target.parent.iterdir()) == []


def test_an_address_that_does_not_answer(tmp_path, published):
    with pytest.raises(ModelError, match=r"could not be fetched from .* give it with --weights"):
        fetch((tmp_path / "nothing").as_uri(), tmp_path / "weights.pth", START)


@pytest.mark.parametrize("name", OFFLINE)
def test_no_network_when_it_is_switched_off(tmp_path, published, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ModelError, match=r"the network is switched off. Fetch file://"):
        fetch(published.as_uri(), tmp_path / "weights.pth", START)


def test_inception_download_asks_for_the_published_file_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MEDISYN_OFFLINE", "1")
    assert weights_cache() == tmp_path / "medisyn" / "weights"
    with pytest.raises(ModelError, match=r"weights-inception-2015-12-05-6726825d.pth is not here"):
        load_extractor("inception:download")
    with pytest.raises(ConfigError, match="extractor 'inception:other' is unknown"):
        load_extractor("inception:other")

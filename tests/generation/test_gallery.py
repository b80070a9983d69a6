"""The page stands alone: every picture inside, every prompt readable, nothing fetched."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from generation.fake_family import MODEL, FakeFamily, requests
from medisyn import runs
from medisyn.errors import InputError
from medisyn.generation import gallery
from medisyn.generation.generate import generate
from medisyn.types import Request

NASTY = 'a <script src="https://x.example/a.js"> & "quotes" 胸部'


class Page(HTMLParser):
    """Tags with attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(tmp_path: Path, asked: list[Request], card: str = "") -> Page:
    generate(asked, FakeFamily(), tmp_path / "out", model=MODEL, lost_words=lambda p: "tail" if p == NASTY else "")
    gallery.write_gallery(tmp_path / "out", tmp_path / "page.html", card=card)
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_pictures_prompts_and_settings_are_on_the_page(tmp_path: Path) -> None:
    asked = [*requests(3, steps=30, guidance=5.0), Request("n", NASTY, 7, metadata={"specialty": "radiology"})]
    page = page_of(tmp_path, asked, card="# The card\nhttps://example.org is only text")
    images = page.all("img")
    assert [image["alt"] for image in images] == [request.prompt for request in asked]
    for request, image in zip(asked, images, strict=True):
        source = image["src"] or ""
        content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert content == (tmp_path / "out" / f"{request.key}.png").read_bytes()
        assert (image["width"], image["height"]) == ("16", "16")
    text = " ".join(" ".join(page.text).split())
    assert all(request.prompt in text and f"Seed {request.seed}" in text for request in asked)
    for part in (
        "euler, 30 steps, guidance 5, 16 × 16 pixels", "Not for diagnostic use", "s per picture after loading",
        "fake (weights 0123456789abcdef)", "Not read by the model: tail", "https://example.org is only text",
    ):  # fmt: skip
        assert part in text
    assert re.search(r"Radiology\s+a <script", text)


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, [Request("n", NASTY, 7)], card="<img src='https://x.example/b.png'>")
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "a", "iframe", "object")]
    addresses = [a.get(name) for _, a in page.tags for name in ("src", "href", "srcset", "action") if a.get(name)]
    assert addresses
    assert all((address or "").startswith("data:image/png;base64,") for address in addresses)
    style = (tmp_path / "page.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")
    assert page.all("html")[0]["lang"] == "en"


def test_a_long_run_shows_its_beginning_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_PICTURES", 4)
    page = page_of(tmp_path, requests(6))
    assert [image["alt"] for image in page.all("img")] == [f"prompt {i}" for i in range(4)]
    assert "6, of which the first 4 here" in " ".join(page.text)


def test_a_folder_without_generated_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no generated pictures to show"):
        gallery.write_gallery(tmp_path, tmp_path / "page.html")
    runs.write_run(tmp_path, kind="train")
    with pytest.raises(InputError, match="holds no generated pictures to show"):
        gallery.write_gallery(tmp_path, tmp_path / "page.html")


def test_other_folders_follow_under_their_names(tmp_path: Path) -> None:
    generate(requests(1), FakeFamily(), tmp_path / "out", model=MODEL)
    generate([Request("x", "a nodule", 5)], FakeFamily(), tmp_path / "inpainting", model=MODEL)
    gallery.write_gallery(tmp_path / "out", tmp_path / "page.html", also=[tmp_path / "inpainting"])
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [image["alt"] for image in page.all("img")] == [requests(1)[0].prompt, "a nodule"]
    assert "Inpainting" in page.text
    with pytest.raises(InputError, match="empty/ holds no generated pictures"):
        gallery.write_gallery(tmp_path / "out", tmp_path / "page.html", also=[tmp_path / "empty"])

"""The page: complete in itself, and harmless whatever the names in it are."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import full_report

from wsssbed_hub.report import Report, render_html, write_html
from wsssbed_hub.report.html import web_address
from wsssbed_hub.utils.errors import HubError

HOSTILE = [
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "</style><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</title></svg></dialog>&lt;b&gt;",
]


class Structure(HTMLParser):
    """Tags with the names of their attributes, addresses that are loaded, and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster", "background", "action", "xlink:href"):
                self.loaded.append(value)
            if name == "href":
                (self.links if tag == "a" else self.loaded).append(value)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(full_report())


def test_nothing_is_loaded_from_elsewhere(page):
    loaded = Structure(page).loaded
    assert len(loaded) > 12  # four pictures of each of three images, marks of the curves
    # the empty picture of the dialog has no address, curves refer to their own marks
    assert all(re.match(r"data:image/(png|jpeg);base64,|#", address) for address in loaded)
    styles = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_policy_lets_run_only_the_script_that_is_there(page):
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none';")


@pytest.mark.parametrize("words", HOSTILE)
def test_words_stay_words(page, words):
    hostile = Structure(render_html(full_report(words)))
    assert hostile.tags == Structure(page).tags
    # an address that is not http(s) is no link: only "https://example.org/…" and footnotes are
    allowed = [
        link for link in hostile.links if link.startswith(("https://example.org/", "#note-"))
    ]
    assert [link for link in hostile.links if link not in allowed] == []
    assert words in "".join(hostile.text)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://arxiv.org/abs/1904.09569", True),
        ("HTTP://example.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        (" https://example.org", False),
        ("https://a\njavascript:x", False),
    ],
)
def test_web_address(url, kept):
    assert web_address(url) == (url if kept else "")


def test_all_parts_are_there(page):
    text = " ".join("".join(Structure(page).text).split())
    for words in (
        "Better saliency gave",
        "Labels, published tau 0.100",
        "mIoU over labelled pixels alone",
        "ignored",
        "IoU per class",
        "sha256:" + "ab" * 32,
    ):
        assert words in text


def test_the_same_report_gives_the_same_page(page):
    assert render_html(full_report()) == page


def test_a_report_of_nothing(page):
    empty = render_html(Report(title="Nothing yet", target="shapes"))
    assert "Nothing yet" in empty
    assert "<table" not in empty


def test_written_whole(tmp_path, page):
    path = tmp_path / "new" / "report.html"
    write_html(full_report(), path)
    assert path.read_text() == page
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_full_disk_leaves_the_old_page(small_disk, page):
    folder, resize = small_disk
    path: Path = folder / "report.html"
    path.write_text("the old page")
    resize(len(page) // 2)
    with pytest.raises(HubError, match="the disk is full"):
        write_html(full_report(), path)
    assert path.read_text() == "the old page"
    assert [file.name for file in folder.iterdir()] == ["report.html"]

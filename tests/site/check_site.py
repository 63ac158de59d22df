"""The built site as a reader meets it: both languages, two widths, light and dark, the search, and no request elsewhere.

`make docs` builds the site into site/ and runs this file; it needs Chromium.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from browser import look
from dvc_dependencies import ROOT

SITE = ROOT / "site"
FIRST = {"en": ("index.html", "Large-batch training on small hardware"), "zh": ("zh/index.html", "小硬件上的大批训练")}
FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe width="{width}" height="900" src="/{page}"></iframe><img src="/wait?seconds={seconds}" hidden>
<script>
const frame = document.querySelector("iframe");
const measure = () => {{
  const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
  const visible = (part) => part.getClientRects().length > 0;
  const outside = [...page.querySelectorAll("h1, h2, p, img, a.md-nav__link")].filter((part) => visible(part)
    && !part.closest(".md-sidebar--primary, pre, table, [data-md-component=skip]")
    && (part.getBoundingClientRect().right > root.clientWidth + 1 || part.getBoundingClientRect().left < -1));
  document.body.dataset.measured = JSON.stringify({{
    wider: root.scrollWidth - root.clientWidth,
    pictures: page.images.length,
    broken: [...page.images].filter((image) => !image.complete || !image.naturalWidth).length,
    outside: outside.map((part) => part.textContent.slice(0, 40) || part.src),
    background: view.getComputedStyle(page.body).backgroundColor,
    text: page.querySelector(".md-content").innerText,
    found: [...page.querySelectorAll(".md-search-result__link")].map((link) => link.href),
  }});
}};
frame.onload = () => setInterval(measure, 400);
</script>"""


class _Handler(SimpleHTTPRequestHandler):
    """Serves the site, and beside it a page that measures another one in a frame: headless windows have a least width."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path not in ("/frame", "/wait"):
            super().do_GET()
            return
        if parts.path == "/wait":  # a picture that comes late: the page's load, at which Chromium writes it, waits
            time.sleep(float(asked["seconds"]))
        body = FRAME.format(**asked).encode() if parts.path == "/frame" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    assert (SITE / "index.html").exists(), "run `make docs`"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _measure(address: str, page: str, width: int, picture: Path, *, dark: bool = False, seconds: float = 3) -> dict[str, Any]:
    elements = look(
        f"{address}/frame?page={page}&width={width}&seconds={seconds}", picture, size=f"{max(width, 500)},900", dark=dark
    )
    (figures,) = re.findall(r'data-measured="([^"]*)"', elements)
    measured: dict[str, Any] = json.loads(figures.replace("&quot;", '"').replace("&amp;", "&"))
    return measured


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("language", FIRST)
def test_the_first_page_is_whole(address: str, language: str, width: int, dark: bool, tmp_path: Path) -> None:
    page, sentence = FIRST[language]
    measured = _measure(address, page, width, tmp_path / f"{language}-{width}-{dark}.png", dark=dark)
    assert (measured["wider"], measured["broken"], measured["outside"]) == (0, 0, [])
    assert measured["pictures"] >= 1
    assert sentence in measured["text"]
    red = int(re.findall(r"\d+", measured["background"])[0])
    assert red < 60 if dark else red > 200


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("page", ["tutorial.html", "zh/tutorial.html", "next.html", "api.html", "handbook.html"])
def test_long_pages_have_no_broken_picture_and_no_scroll_bar(address: str, page: str, width: int, tmp_path: Path) -> None:
    measured = _measure(address, page, width, tmp_path / "page.png")
    assert (measured["wider"], measured["broken"], measured["outside"]) == (0, 0, [])
    assert len(measured["text"]) > 900


@pytest.mark.parametrize(
    ("page", "words", "hit"), [("index.html", "accumulation", "tutorial"), ("zh/index.html", "梯度", "tutorial")]
)
def test_the_search_finds_pages_without_a_server_elsewhere(
    address: str, page: str, words: str, hit: str, tmp_path: Path
) -> None:
    measured = _measure(address, f"{page}%3Fq={words}", 1280, tmp_path / "search.png", seconds=10)
    assert any(hit in link for link in measured["found"]), measured["found"]


def test_no_page_asks_another_host() -> None:
    asked = re.compile(
        r"""<(?:script|img|iframe)[^>]+src="?(?:https?:)?//|<link[^>]+rel="?stylesheet"?[^>]+href="?(?:https?:)?//|@import"""
    )
    assert [path.name for path in SITE.rglob("*.html") if asked.search(path.read_text(encoding="utf-8"))] == []


def test_what_a_newcomer_looks_for_is_two_clicks_from_the_readme() -> None:
    """README -> docs/next.md -> the page."""
    assert "](docs/next.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    rows = (ROOT / "docs" / "next.md").read_text(encoding="utf-8")
    wanted = {
        "own images": "README.md#your-own-images",
        "own loop": "library.md",
        "best learning rate": "search.md",
        "serve": "README.md#serving-the-model",
        "kill": "reliability.md",
        "compare": "README.md#comparing-runs",
    }
    for words, target in wanted.items():
        assert re.search(rf"^\|[^|]*{words}[^|]*\|[^|]*\]\([^)]*{re.escape(target)}\)", rows, re.MULTILINE), words

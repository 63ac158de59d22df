"""Pages as a person sees them: headless Chromium, its screenshots and what the page says."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

WIDTHS = (1280, 400)
FRAMES = """<!doctype html><meta charset="utf-8"><style>body { margin: 0 } iframe { border: 0; display: block }</style>%s
<script>
const measure = (frame) => {
  const page = frame.contentDocument, root = page.documentElement;
  const outside = [...page.querySelectorAll("h1, h2, p, dd, figure, svg, img, figcaption, summary")].filter((part) =>
    part.getClientRects().length && !part.closest(".scroll")
    && (part.getBoundingClientRect().right > root.clientWidth + 1 || part.getBoundingClientRect().left < -1));
  const isCut = (cell) => {
    const text = page.createRange();
    text.selectNodeContents(cell);
    return text.getClientRects().length > 1;
  };
  outside.push(...[...page.querySelectorAll("table:not(.words) td, .head th")].filter(isCut));
  return {
    wider: root.scrollWidth - root.clientWidth,
    pictures: page.images.length + page.querySelectorAll("svg[role=img]").length,
    broken: [...page.images].filter((image) => !image.complete || !image.naturalWidth).length,
    outside: outside.map((part) => part.tagName + " " + part.textContent.slice(0, 40)),
  };
};
onload = () => { document.body.dataset.measured = JSON.stringify([...document.querySelectorAll("iframe")].map(measure)); };
</script>"""
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
HOW = "Chromium must be there for this test: apt-get install chromium"


def look(address: str, screenshot: Path, seconds: float | None = 15, size: str = "1500,1300", *, dark: bool = False) -> str:
    """Open a page without network, write a screenshot, and return its elements.

    They are those after ``seconds`` of the page's clock, or those at its load event.
    """
    clock = [] if seconds is None else [f"--virtual-time-budget={int(1000 * seconds)}"]
    command = [
        chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}",
        *clock, OFFLINE, f"--user-data-dir={screenshot.parent / 'profile'}",
        f"--screenshot={screenshot}", "--dump-dom", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    output = subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120).stdout
    assert screenshot.stat().st_size > 20_000
    return output


@dataclass(frozen=True)
class Layout:
    """A page at one width: pixels that it is too wide, pictures, those that are broken, what is cut, and cut numbers."""

    wider: int
    pictures: int
    broken: int
    outside: list[str]


def measure(page: Path, folder: Path, widths: tuple[int, ...] = WIDTHS) -> list[Layout]:
    """Lay a page out in frames of these widths, since windows have a least one, and return what each is like."""
    text = html.escape(page.read_text(encoding="utf-8"))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{text}"></iframe>' for width in widths)
    (folder / "frames.html").write_text(FRAMES % frames, encoding="utf-8")
    command = [
        chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,1300",
        "--virtual-time-budget=10000", f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "frames.html").as_uri(),
    ]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'data-measured="([^"]*)"', output)
    assert found is not None
    return [Layout(**item) for item in json.loads(html.unescape(found[1]))]


def print_page(page: Path, folder: Path) -> int:
    """Print a page into ``folder``/page.pdf, and return the number of sheets."""
    paper = folder / "page.pdf"
    command = [
        chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))


def chromium() -> str:
    """Return the browser's program; without one the test is skipped."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip(HOW)
    return program

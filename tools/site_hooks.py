"""What MkDocs does not do itself: pages whose text lies outside of docs/, and the list of decisions."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"handbook.md": "README.md", "security.md": "SECURITY.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}  # fmt: skip  # noqa: E501
"""Pages of the site that show a file of the repository's root."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Add every decision to the navigation."""
    decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    if not any("Decisions" in entry for entry in config["nav"]):
        config["nav"].append({"Decisions": [f"decisions/{path.name}" for path in decisions]})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show the file itself where a page only names it, and let links lead to pages of the site."""
    name = page.file.src_uri
    if name in OUTSIDE:
        markdown = (ROOT / OUTSIDE[name]).read_text(encoding="utf-8").replace("](docs/", "](")
    return LINK.sub(_site_link, markdown)


def _site_link(found: re.Match[str]) -> str:
    """Return a link to a page of the site; the text alone if the file is on no page."""
    text, target, anchor = found[1], found[2], found[3] or ""
    pages = {source: page for page, source in OUTSIDE.items()}
    file = target.removeprefix("../")
    if file in pages:
        return f"[{text}]({pages[file]}{anchor})"
    return text if file in ("LICENSE", "decisions") or file.startswith("examples/") else found[0]

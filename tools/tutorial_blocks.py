"""The code blocks of the tutorial, what they print, and whether two outputs say the same."""

import re
from dataclasses import dataclass
from pathlib import Path

from dvc_dependencies import ROOT

__all__ = ["PAGES", "Block", "plain_code", "read_blocks", "same_output"]

PAGES = {language: ROOT / "docs" / name for language, name in (("en", "tutorial.md"), ("zh", "tutorial.zh.md"))}
FENCE = re.compile(r"```(python|console|yaml)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ROUNDING = 1e-10  # smaller numbers are rounding, which differs between machines


@dataclass(frozen=True)
class Block:
    """A block of code.

    Args:
        kind: ``python``, ``console`` or ``yaml``.
        code: what is run; of a console block the commands, without their ``$``.
        output: what it prints, as the page says; ``...`` is for any text.
    """

    kind: str
    code: str
    output: str


def read_blocks(path: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    return [_block(*found.groups()) for found in FENCE.finditer(path.read_text(encoding="utf-8"))]


def _block(kind: str, code: str, output: str | None) -> Block:
    if kind != "console":
        return Block(kind, code, output or "")
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*\n)", code, re.MULTILINE)
    printed = re.sub(r"^\$ (?:.*\\\n)*.*\n", "...\n", code, flags=re.MULTILINE)
    return Block(kind, "".join(commands), printed)


def plain_code(block: Block) -> str:
    """Return the code without its comments, in which languages may differ."""
    return re.sub(r"(^|  )# .*$", "", block.code, flags=re.MULTILINE)


def same_output(expected: str, printed: str, tolerance: float = 0.02) -> bool:
    """Return whether a block printed what the page says.

    Args:
        expected: the page's text; ``...`` is for any text.
        printed: what was printed.
        tolerance: by how much a fraction may differ, relative and absolute; whole numbers must be equal.
    """
    pattern = ".*?".join(_pattern(part) for part in expected.strip().split("..."))
    found = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    wanted = [number for part in expected.strip().split("...") for number in NUMBER.findall(part)]
    return found is not None and all(_close(*pair, tolerance) for pair in zip(wanted, found.groups(), strict=True))


def _pattern(text: str) -> str:
    words = re.split(NUMBER, text)
    return f"({NUMBER.pattern})".join(re.sub(r"(\\?\s)+", r"\\s+", re.escape(word)) for word in words)


def _close(expected: str, found: str, tolerance: float) -> bool:
    if not re.search(r"[.e]", expected):
        return expected == found
    wanted, got = float(expected), float(found)
    if abs(wanted) < ROUNDING:
        return abs(got) < ROUNDING
    return abs(wanted - got) <= tolerance * max(1.0, abs(wanted))

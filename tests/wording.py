"""The project's words: phrases that plain English has no use for, and the texts that people read."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from dvc_dependencies import ROOT

FOREIGN = re.compile(
    r"\b([Gg]o(es)? on|[Gg]oing on|[Ww]ent on|[Gg]one on|(is|are|was|were|be) none|[Ww]hoever|[Ss]omebody|[Aa]nybody|[Nn]obody|"
    r"[Aa]new|[Aa]fresh|[Tt]ells?|[Tt]old|[Tt]elling|[Bb]egins?|[Bb]egan|[Bb]egun|[Bb]eginning|[Ss]tands?|[Ss]tood|[Ss]tanding|"
    r"for ever|all the same|at hand|put right|of one's own|where there (is|are) none|[Ss]truck|vouche[sd])\b"
)
VERBS = ("Ask", "Begin", "Give", "Gives", "Let", "Note", "Say", "Take", "Tell", "Tells")
"""Words that start no docstring: return, start, log and set say the same in the words of the field."""
PLAIN = ("README.md", "CHANGELOG.md", "SECURITY.md", "params.yaml", "MLproject", "Makefile", "dvc.yaml")
CODE = ("src", "pipelines", "benchmarks", "tools")


def foreign_words(text: str) -> list[str]:
    """Return lines with a foreign phrase outside of code (`study.tell` is Optuna's)."""
    prose = re.sub(r"```.*?```|``[^`\n]*``|`[^`\n]*`|[Aa]sk and tell|study\.tell", "", text, flags=re.DOTALL)
    return [line.strip() for line in prose.splitlines() if FOREIGN.search(line)]


def pages() -> list[Path]:
    """Return the texts that are not code."""
    return [ROOT / name for name in PLAIN] + sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "presets").glob("*.yaml"))


def modules() -> list[Path]:
    """Return the project's code, without its tests."""
    return sorted(path for name in CODE for path in (ROOT / name).rglob("*.py"))


def read_texts(path: Path) -> Iterator[str]:
    """Yield the strings and comments of a module."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            yield token.string


def read_docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""

"""The tutorial: its Python code runs and prints what the page says; the other language and the notebook have the same code."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

import tutorial_notebook
from tutorial_blocks import PAGES, plain_code, read_blocks, same_output

HEADINGS = 17


def test_the_code_of_the_tutorial_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console blocks are run by `make docs`, with the notebook."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = [block for block in read_blocks(PAGES["en"]) if block.kind == "python"]
    assert len(blocks) > 15
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block.code, names)  # the page is the project's own
        assert same_output(block.output, printed.getvalue()), f"{block.code}\n{printed.getvalue()}"


def test_both_languages_have_the_same_code_and_numbers() -> None:
    english, chinese = (read_blocks(page) for page in PAGES.values())
    assert [block.kind for block in chinese] == [block.kind for block in english]
    for one, other in zip(english, chinese, strict=True):
        assert plain_code(one) == plain_code(other)
        assert one.output == other.output


def test_both_languages_have_the_same_chapters() -> None:
    for page in PAGES.values():
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert len(re.findall(r"^## ", text, re.MULTILINE)) == HEADINGS - 1
        assert re.findall(r"^## (\d+)", text, re.MULTILINE) == [str(number) for number in range(1, HEADINGS - 1)]


def test_the_notebook_is_that_of_the_page() -> None:
    written = json.loads(tutorial_notebook.NOTEBOOK.read_text(encoding="utf-8"))
    assert written == tutorial_notebook.make_notebook(PAGES["en"]), "run `make documentation`"
    assert not any(cell.get("outputs") for cell in written["cells"])


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("loss 0.931, 3 left", "loss 0.9302, 3 left\n", True),
        ("loss 0.931, 3 left", "loss 0.871, 3 left", False),
        ("loss 0.931, 3 left", "loss 0.931, 4 left", False),
        ("error 2e-16", "error 4e-16", True),
        ("error 2e-16", "error 4e-03", False),
        ("winner: ...\nbye", "winner: trial 3\nand more\nbye", True),
        ("winner: ...\nbye", "no winner", False),
    ],
)
def test_outputs_are_compared_by_their_numbers(expected: str, printed: str, same: bool) -> None:
    assert same_output(expected, printed) is same

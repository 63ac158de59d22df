"""The notebook runs headless from top to bottom, the pipeline's commands included, and prints what the tutorial says.

`make docs` runs this file (minutes); it needs what requirements-docs.txt adds.
"""

import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from tutorial_blocks import PAGES, read_blocks, same_output
from tutorial_notebook import NOTEBOOK, cell_codes

pytestmark = [pytest.mark.filterwarnings("ignore")]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each code cell prints."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = dict(os.environ)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before['PATH']}"
    os.environ |= {f"GIT_{who}_{what}": "reader@mail" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    try:
        client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
        client.execute()
    finally:
        nbformat.write(notebook, folder / "executed.ipynb")
        os.environ.clear()
        os.environ.update(before)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "notebook" not in cell.metadata.get("tags", [])]
    return ["".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout") for cell in cells]


def test_each_cell_prints_what_the_page_says(printed: list[str]) -> None:
    left = iter(printed)
    for block in read_blocks(PAGES["en"]):
        output = "".join(next(left) for _ in cell_codes(block))
        if block.kind == "python":
            assert same_output(block.output, output), f"{block.code}\n{output}"
        elif block.kind == "console":
            assert all(_says(line, output) for line in block.output.splitlines()), f"{block.code}\n{output}"
    assert list(left) == []


def test_progress_is_lines_and_no_bar_that_moves_the_cursor(printed: list[str]) -> None:
    assert [text for text in printed if CONTROL.search(text)] == []
    assert any(re.search(r"epoch +\d+/10", text) for text in printed)


def _says(line: str, output: str) -> bool:
    return line.strip() == "..." or any(same_output(line, printed) for printed in output.splitlines())

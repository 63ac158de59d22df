"""Write docs/tutorial.ipynb, the tutorial as a notebook, from the page; `make documentation`."""

import json
import re
from pathlib import Path
from typing import Any

from dvc_dependencies import ROOT
from tutorial_blocks import FENCE, PAGES, Block, read_blocks

__all__ = ["NOTEBOOK", "make_notebook"]

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
MERGE = """from ruamel.yaml import YAML

yaml, changes = YAML(), '''
{code}'''
params = yaml.load(Path("params.yaml"))
for section, values in yaml.load(changes).items():
    params[section].update(values)
yaml.dump(params, Path("params.yaml"))
"""
SETUP_TEXT = "In a notebook the progress of a command is lines: the next cell says that a cell is no terminal."
SETUP = "%env TTY_COMPATIBLE=0"


def make_notebook(page: Path) -> dict[str, Any]:
    """Return the notebook of a page: a cell for each text between two blocks, and one for each block."""
    blocks = read_blocks(page)
    texts = re.split(r"\0", FENCE.sub("\0", page.read_text(encoding="utf-8")))
    cells = [_text_cell(texts[0]), _text_cell(SETUP_TEXT), {**_code_cell(SETUP), "metadata": {"tags": ["notebook"]}}]
    for block, text in zip(blocks, texts[1:], strict=True):
        cells += [_code_cell(code) for code in cell_codes(block)]
        if text.strip():
            cells.append(_text_cell(text))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def cell_codes(block: Block) -> list[str]:
    """Return the code of a block for cells: of a shell block a cell with pipes, in which progress is lines and no bar.

    A shell of a cell ends with it, so the folder and the environment are changed in cells of their own.
    """
    if block.kind == "python":
        return [block.code]
    if block.kind == "yaml":
        return [MERGE.format(code=block.code)]
    codes, lines = [], ""
    for command in re.findall(r"(?:.*\\\n)*.*\n", block.code):
        moved = re.fullmatch(r"(cd|export) (.*)\n", command)
        if moved is None:
            lines += command
            continue
        codes += [_shell(lines)] if lines else []
        codes.append(f"%cd {moved[2]}\n" if moved[1] == "cd" else "%env {}={}\n".format(*moved[2].split("=", 1)))
        lines = ""
    return codes + ([_shell(lines)] if lines else [])


def _shell(lines: str) -> str:
    return f"%%bash\nset -e\n{lines}"


def _text_cell(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(text.strip() + "\n")}


def _code_cell(code: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": _lines(code)}


def _lines(text: str) -> list[str]:
    return text.rstrip("\n").splitlines(keepends=True)


def main() -> None:
    """Write the notebook."""
    NOTEBOOK.write_text(json.dumps(make_notebook(PAGES["en"]), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

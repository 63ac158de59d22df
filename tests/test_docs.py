"""What the documentation says is run."""

import argparse
import ast
import doctest
import hashlib
import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import guarantees_table
from bigstep.cli import COMMANDS
from bigstep.commands.arguments import STAGES, build_parser
from dvc_dependencies import ROOT
from parameter_table import PAGE, parameters_page
from wording import VERBS, foreign_words, modules, pages, read_docstrings, read_texts

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").rglob("*.md"))
MODULES = sorted(path for path in (ROOT / "src/bigstep").rglob("*.py") if ">>>" in path.read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_examples_in_docstrings_run(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


def test_the_page_of_parameters_is_the_schemas() -> None:
    assert PAGE.read_text(encoding="utf-8") == parameters_page(), "run `make documentation`"


def test_the_page_of_guarantees_is_that_of_the_lists() -> None:
    assert guarantees_table.PAGE.read_text(encoding="utf-8") == guarantees_table.guarantees_page(), "run `make documentation`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readmes_code_runs_as_it_stands() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for code in blocks:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        before = model.weight.detach().clone()
        loader = [(torch.randn(10, 4), torch.randint(0, 3, (10,)))] * 2
        names = {"model": model, "loader": loader, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        exec(code, names)  # the README is the project's own
        assert (model.weight != before).any()


def test_the_code_of_the_page_of_the_library_runs_from_top_to_bottom() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 9
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for code in blocks:
        exec(code, names)  # the page is the project's own
    for accumulated in ("model", "tagger", "mixing"):
        assert any(parameter.grad is not None for parameter in names[accumulated].parameters()), accumulated


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.stem)
def test_pages_are_in_plain_words(page: Path) -> None:
    assert foreign_words(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_messages_comments_and_docstrings_are_in_plain_words(path: Path) -> None:
    assert [line for text in read_texts(path) for line in foreign_words(text)] == []
    assert [text for text in read_docstrings(path) if text.split(" ")[0] in VERBS] == []


def test_help_is_in_plain_words() -> None:
    parser = build_parser()
    (commands,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for command in (parser, *commands.values()):
        assert foreign_words(command.format_help()) == []


def test_foreign_words_are_found_in_prose_and_not_in_code() -> None:
    text = "The run goes on.\n`callback.begin(trial)` starts it.\nWhoever reads `this`\nit has begun\n```\nbegin\n```\n"
    assert foreign_words(text) == ["The run goes on.", "Whoever reads", "it has begun"]


def test_errors_say_what_was_expected_and_what_was_found() -> None:
    """No message has the former pattern "X must be Y, but is Z"."""
    former = re.compile(r"\bmust (be|fit|hold|have|return|draw|repeat|use)\b[^;]*, but\b")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules()]
    texts = [ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)]
    assert [text for text in texts if former.search(text)] == []


def test_rows_of_the_fault_table_have_the_titles_of_their_tests() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| (\d[\w, ]*) \| (.*?)(?: \(hit: [^|]*\))? \| \d+ \| \d+ \|", page, re.MULTILINE))
    assert len(table) > 45
    titles = {}
    for path in (ROOT / "tests").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                row, title = (ast.literal_eval(argument) for argument in call.args[:2])
                titles[str(row)] = title
    assert {row: titles[row] for row in table} == table
    assert [title for title in titles.values() if foreign_words(title)] == []


def test_the_architecture_page_names_every_package_and_only_modules_that_exist() -> None:
    page, home = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), ROOT / "src" / "bigstep"
    packages = {path.parent.name for path in home.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    for name in re.findall(r"`([a-z_/]+\.py)`", page):
        assert (home / name).exists() or (ROOT / name).exists(), name


def test_the_page_of_the_search_is_the_writers_and_its_figure_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "search")
    writer, figure = (importlib.import_module(name) for name in ("measurements_page", "search_figure"))
    page = writer.PAGE.read_text(encoding="utf-8")
    (origin,) = re.findall(r"Samplers of commit \w+, \d+ minutes with \d+ processes[^.]*\.", page)
    assert page == writer.render_page(writer.tables_of(page), origin)
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == list(writer.TITLES)
    costs = {name: cost for name, (cost, _) in figure.read_rows(page).items()}
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert f"{costs['planned, default']} against {costs['TPE 3-D, constraint']} median trials" in " ".join(text.split())
    figure.draw_figure(figure.read_rows(page), tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 10_000


def test_the_readmes_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"[`$] ?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for line in re.findall(r"^\$ bigstep ([^#\n]+)", README, re.MULTILINE):
        build_parser().parse_args(line.split())
    for name in re.findall(r"--preset ([a-z0-9-]+)", README):
        assert (ROOT / "presets" / f"{name}.yaml").exists()


def test_the_page_of_commands_has_every_command_and_its_examples_are_commands() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    names = {name for name in [*STAGES, *COMMANDS] if f"`bigstep {name}" in page or name in ("prepare", "train", "evaluate")}
    assert names == {*STAGES, *COMMANDS}
    for line in re.findall(r"^\$ bigstep ([^#\n|>;]+)", page, re.MULTILINE):
        build_parser().parse_args(line.split())


def test_the_readme_opens_with_what_it_is_a_picture_and_two_commands() -> None:
    opening = README[: README.index("## ")]
    assert opening.startswith("# bigstep\n")
    assert "![" in opening
    assert re.findall(r"^\$ (make \w+)", opening, re.MULTILINE) == ["make repro", "make test"]


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0].split()
    for target in targets:
        assert f"make {target} " in listed, target


def test_no_address_of_a_registry_or_path_of_a_machine_is_committed() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png",):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"(index-url|find-links|/home/\w|/root/)", text) or name.startswith(("tests/", "Makefile")), (
                name
            )


def test_the_environment_of_mlflow_changes_with_the_lock() -> None:
    digest = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()[:12]
    assert f"requirements.txt # {digest}" in (ROOT / "python_env.yaml").read_text(encoding="utf-8"), "run `make lock`"


def test_what_the_site_is_built_with_is_locked_by_hash_and_agrees_with_the_rest() -> None:
    docs, rest = (_locked(ROOT / name) for name in ("requirements-docs.txt", "requirements.txt"))
    assert all(hashes for _, hashes in docs.values())
    assert rest.items() <= docs.items(), "run `make lock`"
    assert "--require-hashes -r requirements-docs.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_the_peers_install_is_locked_by_hash_and_agrees_with_the_rest() -> None:
    locked = [_locked(ROOT / name) for name in ("requirements-bench.txt", "requirements.txt")]
    assert all(hashes for _, hashes in locked[0].values())
    assert locked[1].items() <= locked[0].items(), "run `make lock`"
    assert locked[0]["lightning"][0] not in ("2.6.2", "2.6.3")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--require-hashes -r requirements-bench.txt" in makefile
    assert not re.search(r"pip install .*\[bench\]", makefile)
    assert "!=2.6.2,!=2.6.3" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def _locked(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    blocks = re.split(r"\n(?=\w)", path.read_text(encoding="utf-8"))
    named = [re.match(r"([\w.-]+)(?:\[.*?\])?==([^\s;]+)(.*)", block, re.DOTALL) for block in blocks]
    return {
        f"{m[1]}" if ";" not in m[3] else f"{m[1]} {m[2]}": (m[2], frozenset(re.findall(r"sha256:\w+", m[3])))
        for m in named
        if m
    }


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.zh.md")), ids=lambda page: page.name)
def test_lines_of_chinese_end_at_punctuation(page: Path) -> None:
    """Browsers show the end of a line as a space, which Chinese words are written without."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r".*[\u4e00-\u9fff]\n[\u4e00-\u9fff].*", prose) == []

"""What the documentation says is run."""

import doctest
import hashlib
import importlib
import re
import subprocess
from pathlib import Path

import pytest
import torch

from bigstep.commands.arguments import build_parser
from dvc_dependencies import ROOT
from parameter_table import PAGE, parameters_page

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


FOREIGN = r"\b(goes on|go on|is none|whoever|anew|begun|somebody|stands as)\b"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "params.yaml", ROOT / "docs" / "parameters.md"], ids=str)
def test_what_users_read_first_is_in_plain_words(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if re.search(FOREIGN, line)] == []


def test_no_docstring_begins_with_give() -> None:
    files = [path for path in (ROOT / "src").rglob("*.py") if re.search('"""(Give|Gives) ', path.read_text(encoding="utf-8"))]
    assert files == []


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

"""Imports point down only; each stage lists the code it imports; importing the library is cheap."""

import ast
import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dvc_dependencies import ROOT, files_of, import_closure, imported_names

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
LAYERS = [
    {"errors"},
    {"files", "console"},
    {"config"},
    {"step"},
    {"data"},
    {"models"},
    {"machine", "evaluation", "training"},
    {"checkpoint", "report", "tracking"},
    {"search"},
    {"stages"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _part(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "bigstep").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted((ROOT / "src" / "bigstep").rglob("*.py")), ids=lambda path: path.stem)
def test_imports_point_down(path: Path) -> None:
    if path.name == "__init__.py" and path.parent.name == "bigstep":
        assert not [name for name in imported_names(path) if name.startswith("bigstep")]
        return
    for name in imported_names(path):
        for file in files_of(name) if name.startswith("bigstep.") else ():
            if file.name != "__init__.py" and _part(file) != _part(path):
                assert LEVEL[_part(file)] < LEVEL[_part(path)], f"{path.name} imports {name}"


def test_the_step_needs_torch_and_the_errors_only() -> None:
    for path in (ROOT / "src" / "bigstep" / "step").glob("*.py"):
        for name in imported_names(path):
            root = name.split(".")[0]
            inside = name.startswith(("bigstep.step", "bigstep.errors"))
            assert inside or root == "torch" or root in sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_the_code_each_stage_imports(name: str) -> None:
    listed = {item for item in STAGES[name]["deps"] if item.endswith(".py")}
    assert listed == import_closure(ROOT / STAGES[name]["cmd"].split()[1]), "run `make dependencies`"


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_the_learning_sections_each_stage_reads(name: str) -> None:
    """A stage's function takes the sections it reads as typed arguments, so its signature is the list."""
    module = __import__(f"bigstep.stages.{name}", fromlist=[name])
    sections = [p.annotation for p in inspect.signature(getattr(module, name)).parameters.values()]
    learning = {kind.title for kind in sections if getattr(kind, "learning", False)}
    assert set(STAGES[name]["params"]) == learning
    tree = ast.parse(inspect.getsource(module))
    asked = {
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "stage.section"
    }
    assert asked == {kind.__name__ for kind in sections if hasattr(kind, "learning")}


def _fastest(code: str) -> float:
    """Give the least of what ``code`` prints in five new processes."""
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(5)]
    return min(float(run.stdout.split()[-1]) for run in runs)


@pytest.mark.slow
def test_importing_the_library_costs_a_fifth_of_a_second_at_most() -> None:
    code = (
        "import time, torch; t = time.perf_counter(); from bigstep import Accumulator, losses; print(time.perf_counter() - t)"
    )
    assert _fastest(code) <= 0.2


@pytest.mark.slow
def test_help_answers_in_half_a_second() -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bigstep.cli", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    assert min(times) <= 0.5

"""Imports point down only; each stage lists the code it imports; importing the library is cheap."""

import ast
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from bigstep.runs.code_digest import DECIDING, NO_RESULT
from dvc_dependencies import ROOT, files_of, import_closure, imported_names

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
LAYERS = [
    {"closed_output", "errors", "user_places"},
    {"console", "atomic_files", "machine_output", "randomness", "user_code"},
    {"config", "step"},
    {"tasks"},
    {"data", "memory", "runtime"},
    {"models"},
    {"evaluation", "project", "tracking", "training"},
    {"optuna_mlflow", "planning", "runs"},
    {"comparison"},
    {"report"},
    {"ensembles", "search", "stages"},
    {"diagnostics"},
    {"commands"},
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
    for name in imported_names(path, typing=True):
        for file in files_of(name) if name.startswith("bigstep.") else ():
            if file.name != "__init__.py" and _part(file) != _part(path):
                assert LEVEL[_part(file)] < LEVEL[_part(path)], f"{path.name} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Inside a package, too, and for the type checker only."""
    files = {path: _imported_files(path) for path in (ROOT / "src" / "bigstep").rglob("*.py") if path.name != "__init__.py"}
    order = TopologicalSorter(files)
    order.prepare()  # raises CycleError, with the circle
    assert len(files) > 150


def _imported_files(path: Path) -> set[Path]:
    names = [name for name in imported_names(path, typing=True) if name.startswith("bigstep.")]
    return {file for name in names for file in files_of(name) if file.name != "__init__.py"}


def test_imports_are_plain() -> None:
    """Only the package itself, whose names are loaded when they are asked for, imports by a string."""
    found = [path for path in (ROOT / "src").rglob("*.py") if "import_module" in path.read_text(encoding="utf-8")]
    assert found == [ROOT / "src" / "bigstep" / "__init__.py"]


def test_what_decides_the_result_is_told_from_what_does_not_in_one_place() -> None:
    """The code that a killed training must be resumed with is a dependency of the stage, whole as far as it is imported."""
    closure = import_closure(ROOT / "pipelines" / "train.py")
    assert not {part for part in DECIDING if part in NO_RESULT}
    for part in DECIDING:
        assert any(name.startswith(f"src/bigstep/{part}/") for name in closure)
    for part in NO_RESULT:
        assert (ROOT / "src" / "bigstep" / Path(*part.split("."))).is_dir() or (
            ROOT / "src" / "bigstep" / Path(*part.split("."))
        ).with_suffix(".py").is_file()
        assert not any(name.startswith("src/bigstep/" + part.replace(".", "/")) for name in closure)


def test_no_folder_is_a_hall() -> None:
    """No folder, with those inside it, holds more than 16 % of the lines; no file has more than 260."""
    home = ROOT / "src" / "bigstep"
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in home.rglob("*.py")}
    assert {path.name: count for path, count in lines.items() if count > 260} == {}
    whole = sum(lines.values())
    folders = [path for path in home.iterdir() if path.is_dir()]
    shares = {folder.name: sum(lines[path] for path in lines if folder in path.parents) / whole for folder in folders}
    assert {name: share for name, share in shares.items() if share > 0.16} == {}


def test_no_function_has_more_than_forty_lines_apart_from_its_docstring() -> None:
    found = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                found[f"{path.name}: {node.name}"] = body[-1].end_lineno - body[0].lineno + 1 if body else 0
    assert len(found) > 900
    assert {name: lines for name, lines in found.items() if lines > 40} == {}


def test_the_step_needs_torch_and_the_errors_only() -> None:
    for path in (*(ROOT / "src" / "bigstep" / "step").glob("*.py"), *(ROOT / "src" / "bigstep" / "randomness").glob("*.py")):
        for name in imported_names(path):
            root = name.split(".")[0]
            inside = name.startswith(("bigstep.step", "bigstep.randomness", "bigstep.errors"))
            assert inside or root == "torch" or root in sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_the_code_each_stage_imports(name: str) -> None:
    listed = {item for item in STAGES[name]["deps"] if item.endswith(".py")}
    assert listed == import_closure(ROOT / STAGES[name]["cmd"].split()[1]), "run `make dependencies`"


def test_a_change_of_a_model_or_of_what_is_sent_to_mlflow_prepares_no_data_again() -> None:
    parts = {Path(name).parts[2] for name in STAGES["prepare"]["deps"] if name.startswith("src/bigstep/")}
    assert "data" in parts
    assert not parts & {"memory", "models", "step", "training"}
    sending = {name for name in STAGES["prepare"]["deps"] if name.startswith("src/bigstep/tracking/")}
    assert sending == {"src/bigstep/tracking/__init__.py", "src/bigstep/tracking/delivery.py"}


def _fastest(code: str) -> float:
    """Return the least of what ``code`` prints in three new processes."""
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(3)]
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


def test_the_former_place_of_the_callback_names_the_new_one() -> None:
    import bigstep.optuna_mlflow.callback as new

    sys.modules.pop("bigstep.search.mlflow_callback", None)
    with pytest.warns(DeprecationWarning, match=r"bigstep\.optuna_mlflow\.callback"):
        former = __import__("bigstep.search.mlflow_callback", fromlist=["MLflowCallback"])
    assert former.MLflowCallback is new.MLflowCallback

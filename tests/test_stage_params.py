"""A stage parses params.yaml once, reads no learning section but those that dvc.yaml lists, and imports what it needs."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from bigstep.config.params import SECTIONS
from conftest import copy_project
from dvc_dependencies import ROOT, import_closure

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
LEARNING = {section.title for section in SECTIONS if section.learning}
WHOLE = ("src/bigstep/config/params.py", "src/bigstep/project/parameters.py")  # check all of params.yaml, for every stage
LATER = {"matplotlib", "mlflow", "optuna", "pandas", "scipy", "sklearn", "torchmetrics", "torchvision"}
"""Slow imports that no stage does before it needs them."""
UNUSED = {
    "prepare": {"matplotlib", "mlflow", "optuna", "pandas", "scipy", "sklearn", "torch", "torchmetrics", "torchvision"},
    "train": {"optuna", "sklearn", "torchmetrics"},
    "evaluate": {"optuna", "sklearn", "torchmetrics"},
}
"""Slow imports that a stage over digits does without."""
RUN = f"""
import json, sys
from collections import Counter
from bigstep.config.params import Params
from bigstep.config.section import Section
from bigstep.stages.{{name}} import main

first = sorted(sys.modules)
parsed, read = Counter(), set()
validate, get = Section.model_validate.__func__, Params.__getattribute__

def count(section, *arguments, **options):
    if sys._getframe(1).f_locals.get("origin") == "params.yaml":  # model.json describes a model, too
        parsed[section.title] += 1
    return validate(section, *arguments, **options)

def note(params, name):
    caller = sys._getframe(1).f_code.co_filename
    # a copy with another memory format reads every section
    if "/planning/" not in caller and not caller.endswith("dataclasses.py") and not caller.endswith({WHOLE!r}):
        read.add(name)
    return get(params, name)

Section.model_validate, Params.__getattribute__ = classmethod(count), note
assert main() == 0
print(json.dumps([parsed, sorted(read), first, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("name", STAGES)
def test_dvc_yaml_lists_the_learning_sections_that_the_code_of_a_stage_reads(name: str) -> None:
    """A section is read as ``params.section``, in all code that the stage imports."""
    files = import_closure(ROOT / STAGES[name]["cmd"].split()[1]) - set(WHOLE)
    found = {section for file in files for section in _sections_read(ROOT / file)}
    assert found & LEARNING == set(STAGES[name]["params"])


def _sections_read(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value).rpartition(".")[2] == "params"}


@pytest.mark.slow
def test_a_stage_parses_params_yaml_once_reads_what_dvc_yaml_lists_and_imports_what_it_needs(
    tmp_path: Path, empty_database: Path
) -> None:
    root = copy_project(tmp_path / "project", empty_database)
    for name, stage in STAGES.items():
        parsed, read, first, modules = _run(root, name)
        assert parsed == Counter([section.title for section in SECTIONS]), name
        assert set(read) & LEARNING == set(stage["params"]), name
        assert not LATER & set(first), name
        assert not UNUSED[name] & set(modules), name


def _run(root: Path, name: str) -> Any:
    command = [sys.executable, "-c", RUN.format(name=name)]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])

"""Environment variables and other settings of the process: all in one record, and none changed by an import."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigstep.runtime import environment
from bigstep.runtime.environment import GUARDS, child_environment, read_variable, search_path
from dvc_dependencies import ROOT

SOURCE = ROOT / "src" / "bigstep"

SETTINGS = """
import gc, logging, os, signal, sys, warnings
# these set some themselves
import matplotlib, numpy, optuna, psutil, PIL.Image, pydantic, ruamel.yaml, sklearn, torch, torchmetrics, torchvision

def settings():
    return {
        "environment": dict(os.environ),
        "Pillow": PIL.Image.MAX_IMAGE_PIXELS,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "optuna": optuna.logging.get_verbosity(),
        "matplotlib": {name: str(item) for name, item in matplotlib.rcParams.items() if name != "backend"},
        "warnings": [str(item) for item in warnings.filters],
        "handlers": [str(logging.getLogger(name).handlers) for name in ("", "bigstep", "optuna", "mlflow")],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)],
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "recursion": sys.getrecursionlimit(),
        "folder": os.getcwd(),
    }
"""

WATCH = """
import contextlib, json, os, sys

class Watch:
    def find_spec(self, name, *_):
        if name in ("mlflow", "dvc"):
            seen.setdefault(name, dict(os.environ))

seen = {}
sys.meta_path.insert(0, Watch())
"""


def _run(code: str, folder: Path, **extra: str) -> list[str]:
    kept = {name: text for name, text in child_environment({}).items() if name not in GUARDS}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=folder, env={**kept, **extra}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_no_other_module_uses_the_environment() -> None:
    """Not the variables, nor their names: those that are only mentioned stand in longer texts."""
    names = {text for name, text in vars(environment).items() if name.isupper() and isinstance(text, str)} | set(GUARDS)
    assert len(names) >= 15
    for path in SOURCE.rglob("*.py"):
        if path != SOURCE / "runtime" / "environment.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                used = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
                assert used not in names | {"environ", "getenv", "putenv"} or not isinstance(used, str), f"{path.name}: {used}"


def test_each_variable_has_its_reason() -> None:
    text = (SOURCE / "runtime" / "environment.py").read_text(encoding="utf-8")
    records = re.findall(r'^(?:[A-Z_]+ = "[A-Z_]+"|    "[A-Z_]+": "\w+",).*$', text, re.MULTILINE)
    assert len(records) >= 18
    assert [line for line in records if "  # " not in line] == []


def test_importing_any_module_changes_no_setting_of_the_process(tmp_path: Path) -> None:
    code = f"""{SETTINGS}
before = settings()
import importlib, pkgutil, bigstep
assert settings() == before, "bigstep"
names = [item.name for item in pkgutil.walk_packages(bigstep.__path__, "bigstep.")]
names.remove("bigstep.tracking.named_answers")  # MLflow's server runs it
for name in names:
    importlib.import_module(name)
    now = settings()
    assert now == before, (name, [key for key in before if now[key] != before[key]])
print(len(names), *sorted({{"mlflow", "dvc"}} & set(sys.modules)))
"""
    (last,) = _run(code, tmp_path)
    assert int(last) > 150, "and neither MLflow nor DVC is imported"


@pytest.mark.parametrize(
    ("module", "call", "library"),
    [
        ("bigstep.cli", "entry.main(['doctor'])", "dvc"),
        ("bigstep.cli", "entry.main(['mlflow', '--host', '192.0.2.1'])", "mlflow"),
        ("bigstep.stages.train", "entry.main()", None),
        ("bigstep.search.workers.worker", "entry.main()", None),
        ("bigstep.planning.measure_worker", "entry.main()", None),
    ],
)
def test_an_entry_point_guards_mlflow_and_dvc_before_they_are_imported(
    module: str, call: str, library: str | None, tmp_path: Path
) -> None:
    """The stages and workers end here for want of parameters or a request, which is after the guards."""
    (tmp_path / "params.yaml").write_text("train: {epochs: none}\n" if library is None else "train: {}\n", encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")
    code = f"""{WATCH}
import {module} as entry
assert not seen
with contextlib.suppress(Exception):
    {call}
print(json.dumps([seen, dict(os.environ)]))
"""
    seen, after = json.loads(_run(code, tmp_path, MLFLOW_HTTP_REQUEST_TIMEOUT="7")[-1])
    assert library in seen if library else not seen
    for found in (*seen.values(), after):
        assert {name: found.get(name) for name in GUARDS} == {**GUARDS, "MLFLOW_HTTP_REQUEST_TIMEOUT": "7"}


def test_the_garbage_collector_rests_while_a_stage_is_imported_only(tmp_path: Path) -> None:
    code = f"""
import gc, sys
sys.path.insert(0, {str(SOURCE.parents[1] / "pipelines")!r})
from checkout import own_source
with own_source():
    during = gc.isenabled()
after = gc.isenabled(), gc.get_freeze_count() > 0
try:
    with own_source():
        import a_module_that_is_not_there
except SystemExit:
    print(during, *after, gc.isenabled())
"""
    assert _run(code, tmp_path) == ["False True True True"]


def test_a_search_path_has_no_empty_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one would be the current folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert search_path("PYTHONPATH", "/a") == "/a"
    monkeypatch.setenv("PYTHONPATH", "/b")
    assert search_path("PYTHONPATH", "/a") == "/a:/b"
    assert read_variable("PYTHONPATH") == "/b"

"""`make gpu`: its checks need few libraries, its page has what they measured, and without a GPU it says so and fails."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dvc_dependencies import ROOT

BLOCKED = [
    "mlflow",
    "dvc",
    "optuna",
    "pydantic",
    "psutil",
    "ruamel",
    "safetensors",
    "sklearn",
    "matplotlib",
    "rich",
    "filelock",
]
BLOCKED += ["sqlalchemy", "jinja2", "plotly", "torchmetrics"]
RUN = f"""
import sys
from importlib.machinery import PathFinder

class Without:
    '''Finds no module of the pipeline's libraries.'''
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not PathFinder] + [Without]
import pytest
raise SystemExit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_page", ROOT / "benchmarks" / "gpu_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_page"] = module  # for its dataclass
    spec.loader.exec_module(module)
    return module


def test_the_checks_need_no_library_of_the_pipeline_and_the_page_has_what_they_measure(
    page: ModuleType, tmp_path: Path
) -> None:
    report, folder = tmp_path / "report.xml", str(page.CHECKS)
    options = [folder, f"--confcutdir={folder}", "-q", "-k", "precision", f"--junitxml={report}", *page.OPTIONS]
    done = subprocess.run([sys.executable, "-c", RUN, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout, "all other checks were imported"
    checks = list(page.read_checks(report))
    assert {check.outcome for check in checks} == {"passed"}
    text = page.describe(checks, 1.0, on_cpu=True)
    assert f"{len(checks)} checks, 0 failed, in 1 s" in text
    assert "| a scaled gradient is that of one pass up to rounding (float16) | passed | error " in text
    assert "## Whole trainings\n\nNot run: a library that they need is missing." in text


def test_a_failure_is_in_the_page(page: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    failure = '<failure message="1 | 2&#10;"/>'
    case = f'<testcase classname="tests.gpu.test_gpu_streams" name="test_a_b[cuda-3]" time="0.5">{failure}</testcase>'
    report.write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>", encoding="utf-8")
    (check,) = page.read_checks(report)
    assert check.row == "| a b (3) | **failed** | message: 1 / 2 | 0.5 |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "gpu.md")
    assert page.main([]) == 1
    assert capsys.readouterr().err.startswith("make gpu: expected a GPU that torch can use, got none (torch ")
    assert "They have not run on a GPU yet" in page.PAGE.read_text(encoding="utf-8")
    page.PAGE.write_text("what a GPU has measured", encoding="utf-8")
    assert page.main([]) == 1
    assert page.PAGE.read_text(encoding="utf-8") == "what a GPU has measured"


def test_the_page_of_this_project_is_that_of_its_script(page: ModuleType) -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert text.startswith(page.HEAD)
    assert text == page.HEAD + page.NOT_RUN or "checks, 0 failed" in text

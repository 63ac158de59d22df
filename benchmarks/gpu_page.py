"""Every check on a GPU as one command, and docs/gpu.md from what it found; `make gpu` runs it.

It needs torch, torchvision, numpy, pytest and hypothesis. Without a GPU it prints one line and fails.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu.md"
CHECKS = ROOT / "tests" / "gpu"
# other versions of torch warn of other things; figures are recorded in the older kind of report
OPTIONS = ("-o", "filterwarnings=default", "-o", "junit_family=xunit1")
LIMIT = 480  # seconds for all checks
HEAD = """# On a GPU

`make gpu` runs every check of `tests/gpu` on the first CUDA device and writes this page. It needs torch, torchvision, numpy,
pytest and hypothesis only, with Python 3.11 or newer, and uses the environment in `.venv` if there is one;
`make gpu GPU_PYTHON=python3.12` names another interpreter. The checks of whole trainings also need pydantic, psutil,
ruamel.yaml and safetensors, and are left out without them. Where there is no GPU, the usual tests run the same checks on the
CPU.
"""
NOT_RUN = """
**They have not run on a GPU yet.** What bigstep does there (gradients, keyed dropout, float16's scale, streams, predicted
memory, memory that runs out, speed, compiled code) is tested on the CPU only.
"""
TITLES = {
    "test_gpu_gradients": "Gradients against one pass over the whole batch",
    "test_gpu_randomness": "Keyed random numbers",
    "test_gpu_streams": "Streams, pinned memory and prefetched batches",
    "test_gpu_precision": "Autocast and float16's scale",
    "test_gpu_memory": "Predicted memory against the allocator, and memory that runs out",
    "test_gpu_speed": "Speed: images per second over the bare loop's, medians of five rounds in turns",
    "test_gpu_training": "Whole trainings",
    "test_gpu_compile": "Compiled code",
}


@dataclass(frozen=True)
class Check:
    """One check: the file it is in, what it says, how it ended, and what it measured."""

    file: str
    name: str
    outcome: str
    seconds: float
    figures: tuple[tuple[str, str], ...]

    @property
    def row(self) -> str:
        """Its row in the page."""
        text = "; ".join(f"{name} {value}" for name, value in self.figures)
        return f"| {self.name} | {self.outcome} | {text} | {self.seconds:.1f} |"


def main(arguments: Sequence[str]) -> int:
    """Run the checks and write the page; with ``cpu`` on the CPU instead, and print the page."""
    on_cpu = list(arguments) == ["cpu"]
    if not on_cpu and not torch.cuda.is_available():
        if not PAGE.exists():
            PAGE.write_text(HEAD + NOT_RUN, encoding="utf-8")
        sys.stderr.write(
            f"make gpu: expected a GPU that torch can use, got none (torch {torch.__version__}); run it where one is\n"
        )
        return 1
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        code = run_checks("cpu" if on_cpu else "cuda", report)
        checks = list(read_checks(report)) if report.exists() else []
    page = HEAD + describe(checks, time.perf_counter() - started, on_cpu=on_cpu)
    if on_cpu:
        sys.stdout.write(page)
    elif checks:
        PAGE.write_text(page, encoding="utf-8")
    return code


def run_checks(device: str, report: Path) -> int:
    """Run the checks of a device, and return pytest's exit code; its report holds what they measured."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(CHECKS),
        f"--confcutdir={CHECKS}",
        "-q",
        "-k",
        device,
        f"--junitxml={report}",
        *OPTIONS,
    ]
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, timeout=LIMIT, check=False).returncode
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"make gpu: expected the checks to end within {LIMIT} s, got no end; see the last lines above\n")
        return 1


def read_checks(report: Path) -> Iterator[Check]:
    """Yield the checks of pytest's report."""
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 # written by the process above
        problems = [item for item in case if item.tag in ("failure", "error", "skipped")]
        outcome = problems[0].tag.replace("failure", "**failed**").replace("error", "**failed**") if problems else "passed"
        figures = [(item.get("name", ""), item.get("value", "")) for item in case.iter("property")]
        if outcome == "**failed**":
            figures.append(("message:", problems[0].get("message", "").split("\n")[0][:200].replace("|", "/")))
        name, _, parameters = case.get("name", "").removeprefix("test_").partition("[")
        inside = "-".join(part for part in parameters.rstrip("]").split("-") if part not in ("cpu", "cuda"))
        words = name.replace("_", " ") + (f" ({inside})" if inside else "")
        file = case.get("classname", "").rpartition(".")[2]
        yield Check(file, words, outcome, float(case.get("time", "0")), tuple(figures))


def describe(checks: Sequence[Check], seconds: float, *, on_cpu: bool) -> str:
    """Return the page's text below its head."""
    device = platform.processor() or platform.machine() if on_cpu else torch.cuda.get_device_name(0)
    failed = sum(check.outcome == "**failed**" for check in checks)
    lines = [
        "",
        f"{device}, torch {torch.__version__}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}: "
        f"{len(checks)} checks, {failed} failed, in {seconds:.0f} s.",
    ]
    for file, title in TITLES.items():
        found = [check for check in checks if check.file == file]
        lines += ["", f"## {title}", ""]
        if not found:
            lines.append("Not run: a library that they need is missing.")
            continue
        lines += ["| check | outcome | measured | seconds |", "| --- | --- | --- | ---: |", *(check.row for check in found)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Row 47: real command lines, with values of any kind."""

import hashlib
import random
import subprocess

import pytest

from bigstep.config.params import SECTIONS
from faults.project import Project

pytestmark = pytest.mark.slow
KEYS = [f"{section.title}.{key}" for section in SECTIONS for key in section.model_fields]
VALUES = (
    "",
    "-1",
    "0",
    "nan",
    "1e400",
    "[]",
    "{a: 1}",
    "../x",
    "'",
    "; touch struck",
    "null",
    "true",
    "\U0001f600",
    "1e-3",
    "3",
)
COMMANDS = (
    ("train",),
    ("plan",),
    ("check",),
    ("prepare",),
    ("repro",),
    ("search", "--trials", "1"),
    ("search", "--trials", "none"),
    ("predict", "../../no such file"),
    ("train", "--preset", "../x"),
)


@pytest.mark.fault(47, "a command line with values of any kind", rounds=20, rare=True)
def test_a_command_line_works_or_is_refused_in_a_line_for_each_value(round_number: int, project: Project) -> None:
    draw = random.Random(4700 + round_number)
    project.set("train.epochs=1", "search.confirm_top=0", "search.audit_fraction=0")
    command = COMMANDS[round_number % len(COMMANDS)]
    overrides = [f"{draw.choice(KEYS)}={draw.choice(VALUES)}" for _ in range(draw.randint(1, 3))]
    options = [] if command[0] == "predict" else [word for text in overrides for word in ("--set", text)]
    before = _files(project)
    done = subprocess.run(
        ["bigstep", *command, *options],
        cwd=project.root,
        env=project.environment(PYTHONPATH=str(project.root / "src")),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    told = (command, overrides, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert "Traceback" not in done.stdout + done.stderr, told
    assert not (project.root / "struck").exists(), told
    assert done.returncode in (0, 2), told
    if done.returncode == 2:
        lines = [line for line in done.stderr.splitlines() if not line.startswith((" ", "usage:"))]
        assert 1 <= len(lines) <= len(overrides) + 1, told  # one for each value that is wrong
        assert all(line.startswith("bigstep") for line in lines), told
        assert _files(project) == before, told


def _files(project: Project) -> dict[str, str]:
    """Return the bytes of what a person or DVC reads."""
    names = ["params.yaml", "dvc.lock", *(str(path.relative_to(project.root)) for path in project.root.glob("results/**/*"))]
    paths = [project.root / name for name in names]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}

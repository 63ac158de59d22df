import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigstep.console import ConsoleHandler, show_log


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Leave the library's logger as it was."""
    logger = logging.getLogger("bigstep")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers, logger.level = [], logging.NOTSET
    yield logger
    logger.handlers, logger.level = handlers, level


def test_what_the_library_logs_is_a_line_of_the_console_once_an_entry_point_asked(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    child = logging.getLogger("bigstep.tracking.spool_delivery")
    child.warning("unseen [bold]")
    assert capsys.readouterr().out == ""
    show_log()
    show_log()
    child.info("model %s is champion [bold]", 7)
    child.debug("a detail")
    assert capsys.readouterr().out == "model 7 is champion [bold]\n"
    assert [type(handler) for handler in logger.handlers] == [ConsoleHandler]


BELOW = """
import sys
from pathlib import Path
print("first", flush=True)
for _ in range(3000):
    print("x" * 99, file=sys.stderr)
    print("x" * 99, flush=True)
Path("below").touch()
"""
ABOVE = """
import sys
from pathlib import Path
from bigstep.console import console
from bigstep.machine_output import reporting
from bigstep.runtime.child_process import run_child
code = run_child([sys.executable, "-c", sys.argv[1]], Path.cwd(), {})
with reporting(as_json=True) as report:
    report(["x" * 99] * 3000)
console.print("a table")
Path("above").touch()
raise SystemExit(code)
"""


@pytest.mark.parametrize("together", [False, True], ids=["output", "2>&1"])
def test_work_goes_on_where_nobody_reads_its_output_any_more(tmp_path: Path, together: bool) -> None:
    """As in `bigstep repro | head -1`: of the command below, in what this process prints, and in its result."""
    with (tmp_path / "errors").open("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", ABOVE, BELOW],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if together else errors,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        assert process.wait(60) == 0
        errors.seek(0)
        assert not [line for line in errors if not line.startswith("x" * 99)]
    assert (tmp_path / "below").exists()
    assert (tmp_path / "above").exists()


def test_a_command_whose_output_is_closed_says_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "bigstep.cli"]
    finished = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_all_that_a_command_below_prints_arrives(tmp_path: Path) -> None:
    program = ABOVE.replace("above", str(tmp_path / "above"))
    below = "for number in range(30000): print(number)"
    finished = subprocess.run([sys.executable, "-c", program, below], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[:30000] == [str(number) for number in range(30000)]
    assert finished.stdout.endswith("a table\n")

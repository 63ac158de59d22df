import subprocess
import sys
from pathlib import Path

import pytest

START = """
import atexit, sys, threading, time
from pathlib import Path
from bigstep import user_code
from bigstep.stages.quick_exit import exit_process

class Freed:
    def __del__(self):
        Path("freed").touch()

kept = Freed()
atexit.register(Path("at-exit").touch)
print("printed", end="")
"""


def _end(folder: Path, *lines: str, code: int = 3) -> tuple[str, set[str]]:
    command = [sys.executable, "-c", "\n".join([START, *lines, f"exit_process({code})"])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, {path.name for path in folder.iterdir()}


def test_what_is_registered_runs_and_nothing_is_freed(tmp_path: Path) -> None:
    assert _end(tmp_path) == ("printed", {"at-exit"})


@pytest.mark.parametrize(
    "line",
    [
        "user_code.load_user_code('json:loads', 'model', 'model.name')",
        "threading.Thread(target=lambda: (time.sleep(0.3), Path('worked').touch())).start()",
    ],
    ids=["code of the project", "a thread that works"],
)
def test_python_ends_as_usual_beside_what_it_waits_for(line: str, tmp_path: Path) -> None:
    printed, found = _end(tmp_path, line)
    assert printed == "printed"
    assert {"at-exit", "freed"} <= found
    assert ("worked" in found) == ("worked" in line)

"""A process that trains keeps its heap: what a step frees is there for the next one, without page faults."""

import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bigstep.runtime.environment import HEAP_CHOICES, child_environment

PAGES = 64 * 2**20 // resource.getpagesize()  # of the large blocks below
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or (HUGE.exists() and "[always]" in HUGE.read_text(encoding="utf-8")),
    reason="needs glibc, and pages of the usual size",
)
SCRIPT = """
import json, resource, statistics
import torch
{first}

def fill():
    for size in (64, 24, 3):  # above and below each threshold that glibc has by itself
        torch.zeros(size * 2**20, dtype=torch.uint8)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.set_num_threads(1)
for _ in range(4):
    fill()
counts = []
for _ in range(7):
    start = faults()
    fill()
    counts.append(faults() - start)
found = statistics.median(counts)
{last}
resident = int(open("/proc/self/statm").read().split()[1])
print(json.dumps([found, resident]))
"""
KEEP = "from bigstep.training.out_of_memory_guard import OutOfMemoryGuard; OutOfMemoryGuard(torch.device('cpu'))"
RETURN = "from bigstep.runtime.heap import return_memory; return_memory()"


def _run(tmp_path: Path, first: str, last: str = "", **variables: str) -> tuple[float, int]:
    plain = {name: text for name, text in child_environment({}).items() if name not in HEAP_CHOICES}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(first=first, last=last), encoding="utf-8")
    answer = subprocess.run([sys.executable, script], env=plain | variables, capture_output=True, text=True, check=True)
    faults, pages = json.loads(answer.stdout)
    return faults, pages


def test_a_training_keeps_what_its_steps_free(tmp_path: Path) -> None:
    usual, _ = _run(tmp_path, "")
    kept, held = _run(tmp_path, KEEP)
    _, returned = _run(tmp_path, KEEP, RETURN)
    assert usual > PAGES, "each step gets its memory anew"
    assert kept < PAGES / 100, "a glibc before 2.35 maps the largest block each time"
    assert held - returned > PAGES / 2, "where memory runs out it is given back"


@pytest.mark.parametrize("name", HEAP_CHOICES)
def test_a_heap_that_the_user_has_chosen_stays(tmp_path: Path, name: str) -> None:
    text = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    chosen, _ = _run(tmp_path, KEEP, **{name: text})
    assert chosen > PAGES


FREE = """
import torch
from bigstep.runtime.heap import free_heap_bytes
start = free_heap_bytes()
block = torch.zeros(2**26, dtype=torch.uint8)
used = free_heap_bytes()
del block
print(used - start, free_heap_bytes() - used)
"""


def test_the_heap_says_what_is_free() -> None:
    code = f"import torch\n{KEEP}\n{FREE}"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    growth, freed = map(int, answer.stdout.split())
    assert growth <= 2**20
    assert 2**26 - 2**16 < freed < 2**27

"""How OpenMP's wait policy shares two cores: images per second of one training, quiet and beside a busy process."""

import json
import os
import statistics
import subprocess
import sys

from auto import CASES, Case, our_step, rate

POLICIES: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
ROUNDS = 2
SECONDS = 3.0


def main() -> None:
    """Print a row of Markdown for each case and policy; with a case's name on the command line: measure that case here."""
    if sys.argv[1:]:
        (case,) = [item for item in CASES if item.name == sys.argv[1]]
        print(json.dumps(_measured(case)))
        return
    print(
        "| model | policy | quiet, of the default | beside a busy process, of the default quiet |\n| --- | --- | ---: | ---: |"
    )
    for case in CASES:
        found = {policy: ([], []) for policy in POLICIES}
        for _ in range(ROUNDS):
            for policy, extra in POLICIES.items():
                found[policy][0].append(_child(case, extra, busy=False))
                found[policy][1].append(_child(case, extra, busy=True))
        base = statistics.median(found["libgomp's default"][0])
        for policy, (quiet, busy) in found.items():
            print(f"| {case.name} | {policy} | {statistics.median(quiet) / base:.2f} | {statistics.median(busy) / base:.2f} |")


def _child(case: Case, extra: dict[str, str], *, busy: bool) -> float:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, __file__, case.name]
        done = subprocess.run(command, env={**environment, **extra}, check=True, capture_output=True, text=True)
        return float(json.loads(done.stdout.splitlines()[-1]))
    finally:
        if other is not None:
            other.kill()
            other.wait()


def _measured(case: Case) -> float:
    step = our_step(case, case.micro, "contiguous")
    step()
    return rate(step, case, SECONDS)


if __name__ == "__main__":
    main()

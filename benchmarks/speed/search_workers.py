"""What a second worker of a search gains: seconds of the same trials with two workers of a thread each, and with one worker.

Each search runs in a copy of this checkout with a study of its own; the trials are those of the random sampler, which does not
look at what the others found. Seconds are those from the first trial's start to the last one's end, by the study itself, and
each round runs every search in turn. Trials that differ in length leave the second worker idle at the end: that is counted.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from startup import ROOT, copy_checkout, environment

TRIALS, EPOCHS = 8, 6
CASES = {"one worker, one thread": (1, 1), "one worker, all cores": (1, None), "two workers, one thread each": (2, 1)}


def main() -> None:
    """Print a row of Markdown for each way to search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as scratch:
        project = copy_checkout(ROOT, Path(scratch, "project"))
        run(project, ["repro", "--set", "train.epochs=1"])  # the data, and MLflow's database
        for number in range(rounds):
            for name, (workers, threads) in CASES.items():
                found[name].append(
                    search_seconds(project, f"study{number}-{len(found[name])}-{workers}-{threads}", workers, threads)
                )
    base = found["one worker, one thread"]
    print("| search of 8 trials | s | one worker of one thread / this |\n| --- | ---: | ---: |")
    for name, seconds in found.items():
        ratio = statistics.median(one / other for one, other in zip(base, seconds, strict=True))
        print(f"| {name} | {statistics.median(seconds):.1f} | {ratio:.2f} |")


def search_seconds(project: Path, study: str, workers: int, threads: int | None) -> float:
    """Return the seconds between the first trial's start and the last one's end."""
    values = [f"search.workers={workers}", f"search.trials={TRIALS}", f"search.epochs={EPOCHS}", f"search.study={study}"]
    fixed = ["search.sampler=random", "search.pruner=none", "search.confirm_top=0", "search.audit_fraction=0"]
    storage = project / ".bigstep" / f"{study}.log"
    limit = [f"hardware.threads={threads}"] if threads else []
    run(project, ["search", "--set", *values, *fixed, *limit, f"search.storage={storage}"])
    backend = JournalFileBackend(str(storage))
    trials = optuna.load_study(study_name=study, storage=JournalStorage(backend)).trials
    starts, ends = zip(*((trial.datetime_start, trial.datetime_complete) for trial in trials), strict=True)
    return (max(ends) - min(starts)).total_seconds()


def run(project: Path, arguments: list[str]) -> None:
    """Run bigstep in the copy."""
    kept = {name: text for name, text in environment(project).items() if not name.startswith("OMP_")}
    subprocess.run([sys.executable, "-m", "bigstep.cli", *arguments], cwd=project, env=kept, check=True, capture_output=True)


if __name__ == "__main__":
    main()

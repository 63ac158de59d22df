"""What Optuna does under the faults of the search, as it comes; in the form of its own tutorials."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sandbox import Folder

__all__ = ["infeasible", "killed_workers", "left_lock", "nothing_there", "paused", "torn_journal"]

WORKER = """
import sys, time, optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
optuna.logging.set_verbosity(optuna.logging.ERROR)
where, trials, seconds, how = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
if where.startswith("sqlite"):
    storage = RDBStorage(where, heartbeat_interval=1, grace_period=2) if "beat" in how else where
else:
    storage = JournalStorage(JournalFileBackend(where))
study = optuna.create_study(study_name="study", storage=storage, load_if_exists=True)
def objective(trial):
    value = trial.suggest_float("x", 0, 1)
    print("took", trial.number, flush=True)
    time.sleep(seconds)
    return value
if "total" in how:
    study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(trials)])
else:
    study.optimize(objective, n_trials=trials)
"""


def infeasible(folder: Folder) -> str:
    """Row 18: micro-batches over a cap run out of memory, which the objective raises; a hundred asks."""
    del folder

    def objective(trial: optuna.Trial) -> float:
        micro, steps = trial.suggest_int("micro", 0, 11), trial.suggest_int("steps", 0, 3)
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        if micro > 6:
            raise MemoryError
        return (micro + 2 * steps - 5) ** 2 + rate

    fits = []
    for seed in range(5):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(objective, n_trials=100, catch=(MemoryError,))
        fits.append(len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])))
    return f"Optuna, TPE, out of memory raised: {min(fits)} to {max(fits)} of 100 asks fit (5 seeds)"


def torn_journal(folder: Folder) -> str:
    """Row 23: the last line of the journal is cut, and another process appends."""
    path = folder.root / "study.journal"
    lost = 0
    for chance in range(5):
        path.unlink(missing_ok=True)
        _work(folder, str(path), "3", "0")
        content = path.read_bytes()
        size = len(content) - len(content.rstrip(b"\n").rpartition(b"\n")[2]) // 2 - chance
        path.write_bytes(content[:size])
        _work(folder, str(path), "3", "0")
        lost += _work(folder, str(path), "1", "0").returncode != 0
    return f"Optuna: the next start appends to the torn line; after that the study cannot be read in {lost} of 5"


def left_lock(folder: Folder) -> str:
    """Row 24: the journal's lock was left by a killed process."""
    path = folder.root / "study.journal"
    _work(folder, str(path), "1", "0")
    Path(f"{path}.lock").symlink_to(path)
    started = time.monotonic()
    code = _work(folder, str(path), "1", "0").returncode
    return f"Optuna: the next start waits {time.monotonic() - started:.0f} s, then exit {code}"


def killed_workers(folder: Folder) -> str:
    """Row 25: two workers killed again and again, and restarted with the same command."""
    path, chance = folder.root / "study.journal", random.Random(0)  # noqa: S311 # when to kill
    for _ in range(4):
        workers = [_begin(folder, str(path), "20", "0.3", "total") for _ in range(2)]
        time.sleep(chance.uniform(3, 5))
        for worker in workers:
            worker.kill()
            worker.communicate()
    for worker in [_begin(folder, str(path), "20", "0.3", "total") for _ in range(2)]:
        worker.communicate()
    trials = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(str(path)))).get_trials()
    states = [trial.state for trial in trials]
    complete, running = states.count(TrialState.COMPLETE), states.count(TrialState.RUNNING)
    asked = "Optuna: asked for 20 trials by `MaxTrialsCallback`"
    return f"{asked}, {complete} complete after four kills of two workers, {running} left RUNNING"


def nothing_there(folder: Folder) -> str:
    """Row 26: four workers start at the same time without a database."""
    good = 0
    for number in range(5):
        address = f"sqlite:///{folder.root / f'{number}.db'}"
        workers = [_begin(folder, address, "1", "0") for _ in range(4)]
        good += sum(worker.wait() == 0 for worker in workers)
    return f"Optuna on SQLite: {good} of 20 workers started (5 times 4)"


def paused(folder: Folder) -> str:
    """Rows 29 and 30: a worker is paused for longer than the grace period of its heartbeats, and continues."""
    address = f"sqlite:///{folder.root / 's.db'}"
    worker = _begin(folder, address, "1", "3", "beat")
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.send_signal(signal.SIGSTOP)
    time.sleep(5)
    _work(folder, address, "1", "0", "beat")  # fails the stale trial
    worker.send_signal(signal.SIGCONT)
    code = worker.wait(60)
    states = [trial.state.name for trial in optuna.load_study(study_name="study", storage=RDBStorage(address)).get_trials()]
    return f"Optuna: its trial is {states[0]}, the worker ends with exit {code}{' and a traceback' if code else ''}"


def _begin(folder: Folder, *arguments: str) -> "subprocess.Popen[str]":
    (folder.root / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, "worker.py", *arguments]
    return subprocess.Popen(command, cwd=folder.root, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _work(folder: Folder, *arguments: str) -> "subprocess.CompletedProcess[str]":
    (folder.root / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, "worker.py", *arguments]
    return subprocess.run(command, cwd=folder.root, text=True, capture_output=True, check=False)

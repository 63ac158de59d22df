"""A worker of a study without training, for tests: python studying.py ADDRESS BUDGET [wait | hold]

It takes trials from the queue until the budget is used up, and prints how many. With ``wait`` it prints that it is ready, and
starts when a line of its standard input tells it to; with ``hold`` it keeps each trial until a line comes or the input ends.
"""

import sys
import time

import optuna

from bigstep.search.samplers import choose_sampler
from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_queue import TrialQueue


def main() -> None:
    address, budget = sys.argv[1], int(sys.argv[2])
    waits, holds = (mode in sys.argv[3:] for mode in ("wait", "hold"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if waits:
        print("ready", flush=True)
        sys.stdin.readline()
    ledger = TrialQueue(open_study(open_storage(address), "study", ["minimize"]), budget, 10 * budget)
    count = 0
    while True:
        ledger.reclaim_dead()
        trial = ledger.take(lambda number: choose_sampler("random", seed=number, space="planned", num_objectives=1))
        if trial is None:
            if not any(item.state == optuna.trial.TrialState.RUNNING for item in ledger.trials()):
                break
            time.sleep(0.05)
            continue
        value = trial.suggest_float("x", 0, 1)
        print("took", trial.number, flush=True)
        if holds:
            sys.stdin.readline()
        ledger.study.tell(trial, value)
        count += 1
    print("count", count)


if __name__ == "__main__":
    main()

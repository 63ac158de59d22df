"""A worker of a study without training, for tests: python studying.py ADDRESS BUDGET [SECONDS [START]]

It begins at the moment START (of time.time), takes trials by the ledger until the budget is used up, and prints how many.
"""

import sys
import time

import optuna

from bigstep.search.samplers import choose_sampler
from bigstep.search.storage import open_storage, open_study
from bigstep.search.trial_queue import TrialQueue


def main() -> None:
    address, budget = sys.argv[1], int(sys.argv[2])
    seconds, start = (float(text) for text in [*sys.argv[3:5], "0", "0"][:2])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    time.sleep(max(0.0, start - time.time()))
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
        time.sleep(seconds)
        ledger.study.tell(trial, value)
        count += 1
    print("count", count)


if __name__ == "__main__":
    main()

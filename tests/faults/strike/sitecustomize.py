"""Strikes a process where it touches the disk: loaded by every Python whose PYTHONPATH leads here.

``$STRIKE`` is ``event|pattern|number|action``: at the number-th audit event of that name whose first argument matches, leave
``$STRIKE_MARK`` behind and act: ``kill`` this process, or ``sleep`` for twenty seconds.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path


class Strike:
    def __init__(self, event: str, pattern: str, number: str, action: str) -> None:
        self.event, self.pattern, self.left, self.action = event, re.compile(pattern), int(number), action
        self.mark = Path(os.environ["STRIKE_MARK"])

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != self.event or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if not self.left or not self.pattern.search(os.fspath(arguments[0])):
            return
        self.left -= 1
        if self.left == 0:
            self.mark.write_text(f"{event} {arguments[0]}\n", encoding="utf-8")
            if self.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(20)


if "STRIKE" in os.environ and not Path(os.environ["STRIKE_MARK"]).exists():
    sys.addaudithook(Strike(*os.environ["STRIKE"].split("|")))

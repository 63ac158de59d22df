"""The output of a command that this process runs, passed on: the command continues without a reader (`| head`)."""

import os
import stat
import threading
from typing import final

__all__ = ["PassedOutput"]

OUTPUT, ERRORS = 1, 2  # file descriptors
BLOCK_BYTES = 65536
END_SECONDS = 2.0  # after the end of the command, for what is left of it


@final
class PassedOutput:
    """A pipe for a command's output, if that of this process is one; a terminal or a file the command has itself."""

    def __init__(self) -> None:
        """Open the pipe."""
        self.stdout: int | None = None
        self.stderr: int | None = None
        """For ``Popen``; the same as ``stdout`` where both are one here (`2>&1`)."""
        self._thread: threading.Thread | None = None
        if _is_pipe(OUTPUT):
            self._source, self.stdout = os.pipe()
            self.stderr = self.stdout if _is_same_as_output(ERRORS) else None

    def start(self) -> None:
        """Pass on what the command prints, which has started."""
        if self.stdout is not None:
            os.close(self.stdout)
            self._thread = threading.Thread(target=_pass_on, args=(self._source,), name="bigstep-output", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait for the last lines; what the command has started may still print some."""
        if self._thread is not None:
            self._thread.join(END_SECONDS)


def _pass_on(source: int) -> None:
    is_read = True
    while data := os.read(source, BLOCK_BYTES):
        try:
            while is_read and data:
                data = data[os.write(OUTPUT, data) :]
        except OSError:  # there is no reader; the command must not wait for one
            is_read = False
    os.close(source)


def _is_pipe(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _is_same_as_output(descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(OUTPUT), os.fstat(descriptor))
    except OSError:
        return False

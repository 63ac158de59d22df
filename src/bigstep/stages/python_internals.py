"""Every private name of Python that the stages use, with its reason; tests/test_internals.py tries it."""

import atexit

__all__ = ["run_exit_functions"]


def run_exit_functions() -> None:
    """Run what is registered with ``atexit``: nothing public does so before an exit that frees nothing."""
    atexit._run_exitfuncs()  # noqa: SLF001 # as multiprocessing does at the end of its processes

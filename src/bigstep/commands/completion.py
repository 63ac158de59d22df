"""`bigstep completion`: a script that a shell sources to complete commands and options."""

import argparse

from bigstep.closed_output import printing_result
from bigstep.errors import ExitCode

__all__ = ["completion"]


def completion(parser: argparse.ArgumentParser, shell: str) -> int:
    """Print the script.

    Args:
        parser: of all commands.
        shell: ``bash``, ``zsh`` or ``tcsh``.

    Returns:
        0
    """
    import shtab

    with printing_result():
        print(shtab.complete(parser, shell))
    return ExitCode.OK

"""`bigstep completion`: a script that a shell sources to complete commands and options."""

import argparse

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

    print(shtab.complete(parser, shell))
    return ExitCode.OK

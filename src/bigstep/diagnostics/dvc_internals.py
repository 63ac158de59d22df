"""Every private name of DVC that bigstep uses, with its reason; tests/test_internals.py tries it.

DVC documents its commands and `dvc.api`, no other module.
"""

from typing import Any

__all__ = ["matches_lock_schema"]


def matches_lock_schema(content: Any) -> bool:
    """Return whether DVC can read what a dvc.lock contains: no command checks that file alone."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # type: ignore[import-untyped]
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(content)
    except Invalid:
        return False
    return True

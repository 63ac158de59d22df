"""Which code decides what is learned, and which decides no result at all; the one place that separates them.

A training is resumed with the same ``DECIDING`` code only; a stage of dvc.yaml depends on all it imports but ``NO_RESULT``.
"""

import hashlib
from pathlib import Path

import bigstep
from bigstep.project.own_code import digest_user_code
from bigstep.user_code import is_user_code

__all__ = ["DECIDING", "NO_RESULT", "digest_code"]

DECIDING = ("randomness", "step", "tasks", "data", "models", "training")  # packages whose code decides what is learned
NO_RESULT = ("planning", "project.parameters")  # they can refuse or slow a stage, and change nothing that it writes


def digest_code(*own: str) -> str:
    """Hash the code that decides what is learned; ``own`` are names of a project's own code, others among them are left out."""
    root, digest = Path(bigstep.__file__).parent, hashlib.sha256()
    for package in DECIDING:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    for name in filter(is_user_code, own):
        digest.update(digest_user_code(name, "model").encode())
    return digest.hexdigest()[:12]

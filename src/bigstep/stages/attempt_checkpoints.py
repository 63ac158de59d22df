"""The checkpoints of a stage: they belong to one attempt, one data set and one state of the code."""

import hashlib
from pathlib import Path

from bigstep.atomic_files import sha256
from bigstep.console import console
from bigstep.data.store import Store
from bigstep.project.attempts import begin_stage, read_attempt
from bigstep.runs.checkpoints import CheckpointWriter
from bigstep.runs.code_digest import digest_code
from bigstep.runtime.environment import RESUME_ANYWAY, is_set
from bigstep.stages.stage_runner import Stage

__all__ = ["open_checkpoints"]


def open_checkpoints(stage: Stage, store: Store, every_seconds: float) -> "CheckpointWriter":
    """Find the checkpoints of the stage's attempt; with other data or code than it was started with, a new attempt starts.

    ``$BIGSTEP_RESUME_ANYWAY`` (``--ignore-code-change``) resumes with other code.
    """
    weights = stage.project.starting_weights(stage.params.model.weights)
    data, code = _digest_data(store, weights), digest_code(*stage.params.training_code)
    latest = read_attempt(stage.project.attempts, stage.key)
    known = None if latest is None or stage.name in latest.finished else latest.fingerprint
    anyway = is_set(RESUME_ANYWAY) and known is not None and known.partition("-")[0] == data
    fingerprint = known if anyway else f"{data}-{code}"
    if known is not None and known != fingerprint:
        console.print(_began_otherwise(known, data))
    attempt = begin_stage(stage.project.attempts, stage.key, stage.name, fingerprint)
    folder = stage.project.checkpoints / f"{stage.key}.{attempt.number}"
    return CheckpointWriter(
        folder, every_seconds, {"bigstep.resumed_with_other_code": code} if known != f"{data}-{code}" and anyway else {}
    )


def _began_otherwise(known: str, data: str) -> str:
    if known.partition("-")[0] != data:
        return "an unfinished training was started with other data; this one starts from the first step"
    return (
        "an unfinished training was started with other code in custom/model or in bigstep's randomness, step, tasks, data, "
        "models or training; this one starts from the first step (--ignore-code-change resumes anyway, if you know that the "
        "change does not matter)"
    )


def _digest_data(store: Store, weights: Path | None) -> str:
    digest = hashlib.sha256(store.manifest.digest.encode())
    if weights is not None:
        digest.update(bytes.fromhex(sha256(weights)))
    return digest.hexdigest()[:12]

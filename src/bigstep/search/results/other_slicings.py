"""The cost of a trial with other micro-batch sizes, derived from the plan without training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial

from bigstep.console import format_bytes
from bigstep.planning.throughput import SizeMeasurement
from bigstep.search.trial_record import TrialRecord

__all__ = ["slicing_rows", "slicing_table"]


def slicing_rows(trial: FrozenTrial, rungs: Sequence[SizeMeasurement], room: int | None) -> list[dict[str, Any]]:
    """Derive from the plan what a trial would cost with other micro-batch sizes; nothing is trained.

    The list is empty for a trial that was not trained, or whose micro-batch size is not in the plan.
    """
    record = TrialRecord.read(trial)
    if record.seconds is None:
        return []
    whole, chosen = record.batch.effective_batch_size, record.batch.micro_batch_size
    speeds = {min(rung.micro_batch_size, whole): rung for rung in rungs}
    if rungs and chosen > max(speeds):  # the plan ended before, since larger sizes gained nothing
        last = speeds[max(speeds)]
        more = max(0, (record.predicted_bytes or 0) - last.predicted_bytes)
        speeds[chosen] = replace(
            last,
            micro_batch_size=chosen,
            resident_growth_bytes=last.resident_growth_bytes + more,
            predicted_bytes=last.predicted_bytes + more,
        )
    base = speeds.get(chosen)
    if base is None:
        return []
    return [
        {
            "number": trial.number,
            "effective_batch_size": whole,
            "micro_batch_size": size,
            "accumulation_steps": -(-whole // size),
            "val_loss": record.val_loss,
            "seconds": record.seconds * base.samples_per_second / rung.samples_per_second,
            "resident_growth_bytes": rung.resident_growth_bytes,
            "predicted_bytes": rung.predicted_bytes,
            "fits": room is None or rung.resident_growth_bytes <= room,
            "trained": size == chosen,
        }
        for size, rung in sorted(speeds.items())
    ]


def slicing_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| micro-batch | accumulation steps | training time | process growth | |", "| ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        what = "trained" if row["trained"] else "" if row["fits"] else "does not fit"
        lines.append(
            f"| {row['micro_batch_size']} | {row['accumulation_steps']} | {row['seconds']:.1f} s "
            f"| {format_bytes(row['resident_growth_bytes'])} | {what} |"
        )
    return "\n".join(lines)

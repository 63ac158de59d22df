"""What a search found: its last lines for people, and its result for programs."""

from pathlib import Path
from typing import Any

from bigstep.atomic_files import read_json
from bigstep.config.params import Params
from bigstep.config.yaml_files import read_plain
from bigstep.console import console, format_score
from bigstep.search.results.summary import SearchResult
from bigstep.search.trial_record import TrialRecord

__all__ = ["print_findings", "result_of"]


def print_findings(findings: SearchResult, params: Params) -> None:
    """Print means and spreads, the audit, and the winner."""
    objective = params.search.objectives[0]
    for item in findings.standings:
        name = "baseline (current params.yaml)" if item.of == findings.baseline else f"trial {item.of}"
        count = len(item.values)
        spread, seeds = (f" ± {format_score(item.spread)}", "seeds") if count > 1 else ("", "seed")
        console.print(f"{name}: {objective} {format_score(item.mean)}{spread} over {count} {seeds}")
    for line in findings.audits:
        console.print(f"audit: {line}")
    for warning in findings.warnings:
        console.print(f"WARNING: {warning}")
    if findings.winner is None:
        console.print("no trial was trained to the end, so there is no winner")
        return
    record = TrialRecord.read(findings.winner)
    console.print(f"winner: trial {findings.winner.number}, learning rate {record.learning_rate:.3g}, {record.batch}")
    if findings.verdict:
        console.print(findings.verdict)
    if record.accumulation_steps == 1:
        console.print("accumulation does not help here: the whole batch fits and is as fast")
    console.print(
        "results/search: best_params.yaml, trials.csv, again.csv; `bigstep search --apply` writes the winner into params.yaml"
    )


def result_of(folder: Path, params: Params) -> dict[str, Any]:
    """Return what results/search, in ``folder``, says of a search that ended."""
    summary = read_json(folder / "summary.json")
    chosen = None if summary["winner"] is None else read_plain(folder / "best_params.yaml")
    return {"study": params.search.study, "objective": params.search.objectives[0], **summary, "params": chosen}

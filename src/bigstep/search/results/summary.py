"""The result files of a search: the winner, every trial, and in a separate file what depends on the clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from bigstep.atomic_files import whole_file, write_csv, write_json
from bigstep.config.params import Params
from bigstep.config.yaml_files import apply_overrides, write_yaml
from bigstep.planning.throughput import SizeMeasurement
from bigstep.search.confirmation import SeedStatistics, SlicingComparison, best_trials, compare, standings
from bigstep.search.results.other_slicings import slicing_rows
from bigstep.search.results.verdict import verdict
from bigstep.search.space import ACCUMULATION, EFFECTIVE, MICRO, RATE, Space
from bigstep.search.trial_params import as_configured
from bigstep.search.trial_queue import TrialQueue, is_feasible, value_of
from bigstep.search.trial_record import MEASURED, SCORES, SIZES, SURPLUS, TrialRecord, learned

__all__ = ["SearchResult", "find", "plot_rows", "winning_params", "write_findings"]

OPTIONAL = ("best_params.yaml", "slicings.csv", "landscape.png", "front.png")


@dataclass(frozen=True)
class SearchResult:
    """What a search found: the winning trial (None: no trial was trained), the seed statistics, and the audits."""

    winner: FrozenTrial | None
    standings: tuple[SeedStatistics, ...]
    verdicts: tuple[SlicingComparison, ...]
    trials: tuple[FrozenTrial, ...]
    again: tuple[FrozenTrial, ...]
    front: tuple[FrozenTrial, ...]

    @property
    def baseline(self) -> int | None:
        """Number of the baseline's trial: not 0 where a first one was killed, and another took its place."""
        return next((item.number for item in _complete(self.trials) if TrialRecord.read(item).start == 0), None)

    @property
    def verdict(self) -> str:
        """Whether the winner beats the baseline beyond the spread of seeds; empty if that was not tried."""
        if self.winner is None or self.baseline is None:
            return ""
        return verdict(self.standings, self.winner.number, self.baseline)

    @property
    def warnings(self) -> list[str]:
        """One line for each audit that disagrees with its trial, if that is not known to be rounding."""
        return [_in_words(item) for item in self.verdicts if not item.holds and not item.in_float64]

    @property
    def audits(self) -> list[str]:
        """One line for each audit that agrees with its trial, or differs by rounding only."""
        return [_in_words(item) for item in self.verdicts if item.holds or item.in_float64]


def _in_words(item: SlicingComparison) -> str:
    if item.holds:
        return f"trial {item.of} agrees at micro-batch size {item.micro_batch_sizes[1]}"
    sizes, values = (" and ".join(map(str, pair)) for pair in (item.micro_batch_sizes, (f"{v:.6g}" for v in item.values)))
    found = f"trial {item.of}: micro-batch sizes {sizes} gave {values}"
    if item.in_float64:
        return f"{found}, by rounding that grew over the steps: in float64 the first steps give the same weights"
    why = "rounding errors grew, or the micro-batch size affects training"
    if item.in_float64 is False:
        why = "the micro-batch size affects training, since the first steps give other weights in float64 too"
    return f"{found}, which differ by more than {item.limit:.2g}: {why}; run `bigstep check` to find out"


def find(params: Params, first: TrialQueue, again: TrialQueue) -> SearchResult:
    """Read the result from the studies."""
    search = params.search
    direction = first.study.directions[0]
    trials, done = first.trials(), _complete(again.trials())
    best = best_trials(trials, max(search.confirm_top, 1), direction)
    ranking = standings(best, done, direction)
    spread = max((item.spread for item in ranking), default=0.0)
    front = list(first.study.best_trials) if len(search.objectives) > 1 else []
    known = {trial.number: trial for trial in trials}
    winner = known[ranking[0].of] if ranking else (best[0] if best else None)
    verdicts = compare(trials, done, spread, exact=params.train.precision == "float64")
    return SearchResult(winner, tuple(ranking), tuple(verdicts), tuple(trials), tuple(done), tuple(front))


def winning_params(params: Params, space: Space, trial: FrozenTrial) -> dict[str, dict[str, Any]]:
    """Return the parameters of a trial as sections of params.yaml; ``params`` are those that the search started with."""
    record = TrialRecord.read(trial)
    flat = {**space.overrides(trial.params), **(record.exact or {})}
    flat |= {"hardware.micro_batch_size": record.micro_batch_size, "hardware.accumulation_steps": None}
    found: dict[str, dict[str, Any]] = {}
    for name, value in as_configured(params, flat).items():
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = value
    return found


def write_findings(
    findings: SearchResult, params: Params, space: Space, rungs: Sequence[SizeMeasurement], room: int | None, folder: Path
) -> None:
    """Write the tables to ``folder``; ``trials.csv``, ``again.csv`` and ``best_params.yaml`` hold no times.

    What not every search writes, the plots too, is removed first: it may be another study's.
    """
    for name in OPTIONAL:
        (folder / name).unlink(missing_ok=True)
    names = [name for name in space.dimensions if "." in name and name != RATE]
    score = _score(findings.trials)
    columns = ["number", "state", "feasible", *SIZES, *names, *learned(score)]
    shown = [trial for trial in findings.trials if TrialRecord.read(trial).failed != SURPLUS]
    _write_rows([_row(trial, columns) for trial in shown], columns, folder / "trials.csv")
    columns = ["number", "kind", "of", "seed", *SIZES, *learned(score)]
    _write_rows([_row(trial, columns) for trial in findings.again], columns, folder / "again.csv")
    columns = ["number", *MEASURED, "predicted_bytes"]
    _write_rows([_row(trial, columns) for trial in _complete(shown)], columns, folder / "measured.csv")
    rows = [row for trial in _complete(shown) for row in slicing_rows(trial, rungs, room)]
    if rows:
        _write_rows(rows, list(rows[0]), folder / "slicings.csv")
    write_json(_summary(findings, space), folder / "summary.json")
    if findings.winner is not None:
        with whole_file(folder / "best_params.yaml") as beside:
            triples = [
                (section, key, value)
                for section, values in winning_params(params, space, findings.winner).items()
                for key, value in values.items()
            ]
            write_yaml(apply_overrides({}, triples), beside)


def _score(trials: Sequence[FrozenTrial]) -> str:
    """Return the name of the score that the trials have beside the loss."""
    records = [TrialRecord.read(trial) for trial in trials]
    return next((name for name in SCORES if any(getattr(item, f"val_{name}") is not None for item in records)), SCORES[0])


def _summary(findings: SearchResult, space: Space) -> dict[str, Any]:
    return {
        "space": space.kind,
        "reason": space.reason,
        "winner": None if findings.winner is None else findings.winner.number,
        "verdict": findings.verdict,
        "replicates": [
            {"of": item.of, "mean": item.mean, "spread": item.spread, "values": item.values} for item in findings.standings
        ],
        "audits": [{**vars(item), "holds": item.holds} for item in findings.verdicts],
        "front": [trial.number for trial in findings.front],
        "warnings": findings.warnings,
    }


def _complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def _row(trial: FrozenTrial, columns: Sequence[str]) -> dict[str, Any]:
    known = {**trial.params, **TrialRecord.read(trial).attributes, "number": trial.number, "state": trial.state.name}
    known["feasible"] = is_feasible(trial)
    return {name: known.get(name, "") for name in columns}


def _write_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    write_csv(columns, ([row[name] for name in columns] for row in rows), path)


def plot_rows(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Return the trials that ended as rows for the plots; ``kind`` is trained, pruned or infeasible."""
    return [row for row in map(_plot_row, trials) if row["kind"] and row["learning_rate"] and row["effective_batch_size"]]


def _plot_row(trial: FrozenTrial) -> dict[str, Any]:
    record, point, kind = TrialRecord.read(trial), trial.params, ""
    if trial.state == TrialState.COMPLETE:
        kind = "trained" if is_feasible(trial) else "infeasible"
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        kind = "pruned"
    values = {"trained": lambda: value_of(trial), "pruned": lambda: trial.intermediate_values[max(trial.intermediate_values)]}
    product = point[MICRO] * point[ACCUMULATION] if MICRO in point and ACCUMULATION in point else None
    return {
        "number": trial.number,
        **{name: getattr(record, name) for name in (*SIZES, *MEASURED)},
        "learning_rate": record.learning_rate or point.get(RATE),
        "effective_batch_size": record.effective_batch_size or point.get(EFFECTIVE) or product,
        "value": values[kind]() if kind in values else None,
        "kind": kind,
    }

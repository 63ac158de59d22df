"""Tables of compare_strategies.py: regret by trials and by cost, cost to a target, comparisons with intervals."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import wilcoxon

from regret import Result
from strategies import BASELINE, OURS

__all__ = ["Results", "again_table", "comparison_table", "interval", "strategy_table", "verdict"]

GOOD, BETTER = 0.05, 0.01
PAIDS, COSTS = (10, 20, 30), (10, 20, 40)
RESAMPLES = 2000


Results = dict[str, list[list[Result]]]
"""By strategy, then by table, then by seed."""


def strategy_table(found: Results) -> str:
    """Write the figures of all strategies."""
    names = ("strategy", "seeds", "regret at 10 / 20 / 30 paid", "regret at cost 10 / 20 / 40", "reached 5 % / 1 %")
    rows = [
        f"| {' | '.join((*names, 'median cost / paid to 5 %', 'median cost / paid to 1 %', 'wasted'))} |",
        "| --- " * 8 + "|",
    ]
    for name, groups in found.items():
        every = [result for group in groups for result in group]
        paid = " / ".join(f"{np.mean([result.at_paid(count) for result in every]):.3f}" for count in PAIDS)
        cost = " / ".join(f"{np.mean([result.at_cost(limit) for result in every]):.3f}" for limit in COSTS)
        reached = [[result.reach(limit) for result in every] for limit in (GOOD, BETTER)]
        shares = " / ".join(f"{np.mean([np.isfinite(item[0]) for item in items]):.2f}" for items in reached)
        medians = " | ".join(
            f"{_median(item[0] for item in items)} / {_median(item[1] for item in items)}" for items in reached
        )
        wasted = np.mean([result.wasted for result in every])
        rows.append(f"| {name} | {len(groups[0])} | {paid} | {cost} | {shares} | {medians} | {wasted:.1f} |")
    return "\n".join(rows)


def _median(values: object) -> str:
    found = float(np.median(list(values)))  # type: ignore[call-overload] # an iterable of numbers
    return f"{found:.1f}" if np.isfinite(found) else "never"


def again_table(found: Results, finished: Results) -> str:
    """Compare, at 30 paid trials in total, the best of one seed each with the best by the mean over new seeds."""
    rows = [
        "| strategy | regret: 30 trials, one seed each | 18 trials, best three and baseline retrained | difference (95 %) |"
    ]
    rows.append("| --- | --- | --- | --- |")
    for name in finished:
        means = [[np.mean([item.regret[-1] for item in group]) for group in kind[name]] for kind in (found, finished)]
        difference = np.subtract(means[1], means[0])
        rows.append(f"| {name} | {np.mean(means[0]):.3f} | {np.mean(means[1]):.3f} | {_signed(difference)} |")
    return "\n".join(rows)


def comparison_table(found: Results) -> str:
    """Compare ours with each other strategy, table by table, on seeds that both have: Wilcoxon's test, Holm's correction."""
    rows = ["| against | regret at cost 20, ours minus theirs (95 %) | p | regret at 20 paid, ours minus theirs (95 %) | p |"]
    rows.append("| --- | --- | --- | --- | --- |")
    others = [name for name in found if name != OURS]
    kinds: Sequence[Callable[[Result], float]] = (lambda item: item.at_cost(20), lambda item: item.at_paid(20))
    columns = [[_differences(found, OURS, name, kind) for name in others] for kind in kinds]
    levels = [_holm([_p_value(values) for values in column]) for column in columns]
    for index, name in enumerate(others):
        cells = [f"{_signed(column[index])} | {level[index]:.2g}" for column, level in zip(columns, levels, strict=True)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _differences(found: Results, name: str, other: str, figure: Callable[[Result], float]) -> np.ndarray:
    pairs = zip(found[name], found[other], strict=True)
    return np.array([np.mean([figure(a) - figure(b) for a, b in zip(ours, theirs, strict=False)]) for ours, theirs in pairs])


def _p_value(differences: np.ndarray) -> float:
    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def _holm(values: Sequence[float]) -> list[float]:
    found, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, values[index] * (len(values) - rank)))
        found[index] = largest
    return found


def verdict(found: Results, name: str = OURS) -> str:
    """Return the two figures that a strategy must reach against the baseline, with intervals over the tables."""
    costs = [[[result.reach(GOOD)[0] for result in group] for group in found[kind]] for kind in (name, BASELINE)]
    ours, base = (float(np.median([cost for group in groups for cost in group])) for groups in costs)
    if not np.isfinite([ours, base]).all():
        rows = [f"**{name}**: median cost to 5 % regret {_median([ours])}; {_median([base])} for {BASELINE}.", ""]
    else:
        low, high = _ratio_interval(*costs)
        rows = [f"**{name}**: median cost to 5 % regret {ours:.1f} against {base:.1f} of {BASELINE}, {ours / base:.2f} times"]
        rows[0] += f" (95 %: {low:.2f} to {high:.2f}).\n"
    for count in PAIDS:
        values = _differences(found, name, BASELINE, lambda item, count=count: item.at_paid(count))  # type: ignore[misc] # bound now
        rows.append(f"- Regret after {count} paid trials, minus the baseline's: {_signed(values)}.")
    return "\n".join(rows)


def _signed(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{np.mean(values):+.3f} ({low:+.3f} to {high:+.3f})"


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean over tables, by drawing tables with replacement."""
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[chosen].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def _ratio_interval(ours: list[list[float]], base: list[list[float]]) -> tuple[float, float]:
    chance, ratios = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = chance.integers(len(ours), size=len(ours))
        medians = [np.median([cost for index in chosen for cost in groups[index]]) for groups in (ours, base)]
        ratios.append(medians[0] / medians[1] if np.isfinite(medians[0]) else np.inf)
    low, high = np.quantile(ratios, (0.025, 0.975), method="nearest")
    return float(low), float(high)

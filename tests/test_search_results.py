"""What a search writes when it ends, and what it prints."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, create_trial

from bigstep.commands.search_findings import print_findings
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import parse_params
from bigstep.config.yaml_files import apply_overrides, read_yaml
from bigstep.data.store import Store
from bigstep.project.parameters import check_params
from bigstep.project.paths import ProjectPaths
from bigstep.search.confirmation import SeedStatistics
from bigstep.search.results.in_float64 import agree_in_float64
from bigstep.search.results.summary import SearchResult, winning_params, write_findings
from bigstep.search.space import ACCUMULATION, EFFECTIVE, MICRO, RATE, Space, build_space
from bigstep.search.trial_params import trial_params
from bigstep.search.trial_record import TrialRecord

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
        self.head = torch.nn.Linear(64 * channels, num_classes)

    def forward(self, images):
        if images.dtype == torch.float64:
            raise TypeError("this network computes in float32")
        return self.head(images.flatten(1))
"""


def _trial(space: Space, params: dict[str, Any], record: TrialRecord, number: int = 0) -> FrozenTrial:
    kinds = {name: space.dimensions[name] for name in params}
    found = create_trial(value=0.1, params=params, distributions=kinds, user_attrs=record.attributes)
    found.number = number
    return found


def _result(*trials: FrozenTrial, standings: tuple[SeedStatistics, ...] = ()) -> SearchResult:
    return SearchResult(trials[0] if trials else None, standings, (), trials, (), ())


def test_with_batch_norm_the_winners_micro_batch_is_its_ghost_batch() -> None:
    content = {"model": {"norm": "batch", "ghost_batch_size": 32}}
    params = check_params(content)
    space = build_space(params, "with model.norm batch the micro-batch size affects training")
    point = {RATE: 0.01, MICRO: 8, ACCUMULATION: 4}
    trained = trial_params(content, space.overrides(point))
    batch = trained.batch
    assert (batch, trained.model.ghost_batch_size) == (BatchSizes(32, 8, 4), 8)
    record = TrialRecord(effective_batch_size=32, micro_batch_size=8, accumulation_steps=4, learning_rate=0.01)
    chosen = winning_params(params, space, _trial(space, point, record))
    applied = check_params(
        apply_overrides(content, [(section, key, value) for section, keys in chosen.items() for key, value in keys.items()])
    )
    assert (applied.batch, applied.model) == (batch, trained.model)


def test_files_of_another_study_do_not_stay_beside_its_results(tmp_path: Path) -> None:
    params = parse_params({})
    space = build_space(params)
    record = TrialRecord(effective_batch_size=64, micro_batch_size=32, accumulation_steps=2, learning_rate=0.01)
    found = _result(_trial(space, {RATE: 0.01, EFFECTIVE: 64}, record))
    for name in ("slicings.csv", "landscape.png", "front.png", "notes of my own.txt"):
        (tmp_path / name).touch()
    tables = {"trials.csv", "again.csv", "measured.csv", "summary.json", "notes of my own.txt"}
    write_findings(found, params, space, (), None, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*tables, "best_params.yaml"}
    assert read_yaml(tmp_path / "best_params.yaml")["hardware"]["micro_batch_size"] == 32
    write_findings(_result(), params, space, (), None, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == tables


def test_the_baseline_has_its_name_whatever_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    """A baseline whose worker was killed is another trial's: the first one failed."""
    params = parse_params({})
    space = build_space(params)
    sizes = TrialRecord(effective_batch_size=64, micro_batch_size=32, accumulation_steps=2, learning_rate=0.01)
    trials = [
        _trial(space, {RATE: 0.02, EFFECTIVE: 64}, sizes, 0),
        _trial(space, {RATE: 0.01, EFFECTIVE: 64}, TrialRecord(start=0, **sizes.attributes), 3),
    ]
    print_findings(_result(*trials, standings=(SeedStatistics(0, (0.1,), (1,)), SeedStatistics(3, (0.2,), (1,)))), params)
    printed = capsys.readouterr().out
    assert "trial 0: val_loss 0.1000" in printed
    assert "baseline (current params.yaml): val_loss 0.2000" in printed


def test_a_network_that_refuses_float64_loses_no_result(digits: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").touch()
    (tmp_path / "custom" / "model").mkdir(parents=True)
    (tmp_path / "custom" / "model" / "net.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    content = {"model": {"name": "custom/model/net.py:Net"}, "train": {"epochs": 1}}
    values = {RATE: 0.01, "train.effective_batch_size": 64}
    assert agree_in_float64(ProjectPaths(tmp_path), content, values, digits, (32, 16)) is None

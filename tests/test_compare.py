"""`bigstep compare`: the same run wherever it is found, and differences that are chance are called chance."""

import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from bigstep.commands.compare import _texts, compare, seed_scores
from bigstep.comparison.differences import compare_runs
from bigstep.comparison.paired import mcnemar
from bigstep.comparison.result import Predictions, RunResult, read_predictions
from bigstep.comparison.sources import find_result, other_seeds
from bigstep.config.batch_sizes import BatchSizes
from bigstep.config.params import parse_params
from bigstep.data.ordered_batches import ordered_batches
from bigstep.data.split import Split
from bigstep.data.store import Store
from bigstep.errors import ProjectError
from bigstep.evaluation.predictions import predict_batches
from bigstep.report.comparison_page import write_comparison
from bigstep.training.loop import train_epochs
from bigstep.training.setup import build_training
from bigstep.training.training_batches import TrainingBatches
from browser import Layout, look, measure
from conftest import copy_prepared
from faults.project import Project


@pytest.mark.parametrize(("one", "other"), [(0, 0), (3, 9), (40, 41), (300, 250), (700, 600), (5000, 5300)])
def test_the_probability_is_that_of_the_binomial_test(one: int, other: int) -> None:
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9 if one + other <= 1000 else 0.02)


def test_errors_in_a_small_unit_keep_their_digits() -> None:
    first, second = (RunResult(name, {}, {"test_mae": mae}, (), None) for name, mae in (("x", 1.5e-6), ("y", 1.25e-6)))
    assert compare_runs(first, second).rows() == [("test_mae", "1.500e-06", "1.250e-06")]


def _result(name: str, right: np.ndarray, names: tuple[str, ...]) -> RunResult:
    predicted = tuple("a" if value else "b" for value in right)
    return RunResult(
        name,
        {},
        {"test_accuracy": float(right.mean())},
        (),
        Predictions(names, ("a",) * len(right), predicted, right * 0.8 + 0.1),
    )


@pytest.mark.parametrize(("gap", "least", "most"), [(0.0, 0, 3), (0.03, 19, 20)])
def test_a_gap_of_three_points_is_found_and_none_is_called_chance(gap: float, least: int, most: int) -> None:
    """Of 20 pairs over 10,000 samples; hard samples are hard for both, as in models that differ by their seed."""
    random, count, found = np.random.default_rng(0), 10_000, 0
    names = tuple(map(str, range(count)))
    for _ in range(20):
        ease = random.beta(8, 1, count)
        rights = [(random.random(count) < ease - lost).astype(np.float64) for lost in (gap, 0.0)]
        first, second = (_result(name, right, names) for name, right in zip("xy", rights, strict=True))
        difference = compare_runs(first, second)
        assert difference.paired is not None
        found += difference.paired.is_beyond_chance
        said = "y is better than x" if difference.paired.is_beyond_chance else "beyond chance"
        assert said in difference.verdict or "y is worse" in difference.verdict
    assert least <= found <= most


def _trained(store: Store, seed: int) -> RunResult:
    """A small network on digits, at about 97 % of the test images."""
    train = {"epochs": 5, "seed": seed, "learning_rate": 0.01, "augmentation": "none"}
    params = parse_params({"model": {"width": 8}, "train": train})
    state = build_training(store, BatchSizes(64, 64, 1), params, weights=None)
    for _ in train_epochs(state, params.train, store, TrainingBatches(store, params.train, 64, 0)):
        pass
    ((shares, labels),) = predict_batches(state.evaluated_model, state.task, ordered_batches(store, Split.TEST, 359))
    predicted, actual = (tuple(map(str, values)) for values in (shares.argmax(axis=1), labels))
    p_actual = shares[np.arange(len(labels)), labels].astype(np.float64)
    accuracy = {"test_accuracy": float((shares.argmax(axis=1) == labels).mean())}
    names = tuple(store.names(store.indices(Split.TEST)))
    return RunResult(str(seed), {}, accuracy, (), Predictions(names, actual, predicted, p_actual))


@pytest.mark.slow
def test_of_twenty_pairs_of_seeds_at_most_three_are_called_different(digits: Store) -> None:
    """Trained for real; of all pairs about one in twenty is, as the level of the test says."""
    runs = [_trained(digits, seed) for seed in range(21)]
    assert min(run.metrics["test_accuracy"] for run in runs) > 0.92
    differ = {(one, other): _is_called_different(runs[one], runs[other]) for one, other in itertools.combinations(range(21), 2)}
    assert sum(differ[number, number + 1] for number in range(20)) <= 3
    assert sum(differ.values()) <= 0.15 * len(differ)


def _is_called_different(one: RunResult, other: RunResult) -> bool:
    paired = compare_runs(one, other).paired
    assert paired is not None
    return paired.is_beyond_chance


def test_names_that_differ_at_their_end_are_whole_in_the_legend_and_keys_are_not_broken(tmp_path: Path) -> None:
    names = [f"small_cnn, B 64, lr 0.004, seed {seed}" for seed in (1, 2)]
    history = ({"num_updates": 20.0, "val_loss": 0.5}, {"num_updates": 40.0, "val_loss": 0.25})
    one, other = (RunResult(name, {"train.seed": name[-1]}, {"test_accuracy": 0.9}, history) for name in names)
    write_comparison([compare_runs(one, other)], [[]], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    legend = text[text.index("<figcaption") : text.index("</figcaption>")]
    assert all(name in legend for name in names)
    assert text.count('<table class="keys">') == 2, "parameters and metrics"


def test_predictions_of_several_labels_and_of_numbers_are_not_compared_as_classes() -> None:
    labels = [{"name": "1", "actual": actual, "predicted": "a", "p:a": "0.9", "p:b": "0.2"} for actual in ("a", "", "a|b")]
    numbers = [{"name": "1", "actual": "1.5", "predicted": "1.25"}]
    for table in (labels, numbers):
        found = read_predictions(table)
        assert found is not None
        assert found.p_actual is None


def test_other_test_samples_are_not_compared_one_by_one() -> None:
    right = np.ones(4)
    first, second = _result("x", right, ("1", "2", "3", "4")), _result("y", right, ("1", "2", "3", "5"))
    assert compare_runs(first, second).paired is None
    assert "not compared sample by sample" in compare_runs(first, second).verdict


def _workspace(root: Path, *, predictions: str = "", metrics: str = "{}") -> Path:
    for path, text in {
        "params.yaml": "train: {}\n",
        "results/train/metrics.json": '{"epochs": 3}',
        "results/evaluate/metrics.json": metrics,
        "results/evaluate/predictions.csv": predictions,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def test_seeds_of_one_score_have_no_ratio_to_their_spread() -> None:
    names = ("1", "2", "3", "4")
    same = compare_runs(_result("x", np.ones(4), names), _result("y", np.ones(4), names))
    ending = "spreads by 0.00 points (standard deviation)"
    assert _texts(same, [0.9, 0.9])[-1] == f"between 2 seeds of x the test accuracy {ending}"
    other = compare_runs(_result("x", np.ones(4), names), _result("y", np.array([1.0, 1, 1, 0]), names))
    assert _texts(other, [0.9, 0.9])[-1].endswith(ending)
    assert _texts(other, [0.5, 1.0])[-1].endswith("by 35.36 points (standard deviation); this difference is 0.7 times that")


def test_names_of_samples_may_hold_what_separates_lines(tmp_path: Path) -> None:
    root = _workspace(tmp_path, predictions='name,actual,predicted,p:a\na\x0b\x85\u2028,a,a,0.9\n"b\nc",a,a,0.8\n')
    found = find_result(root, root, "workspace").predictions
    assert found is not None
    assert found.names == ("a\x0b\x85\u2028", "b\nc")
    assert found.p_actual is not None


@pytest.mark.parametrize(
    "damage",
    [{"metrics": '{"a"'}, {"metrics": "[1]"}, {"predictions": "name,actual,predicted,p:a\nx,a\n"}],
)
def test_a_damaged_file_is_one_line(damage: dict[str, str], tmp_path: Path) -> None:
    root = _workspace(tmp_path, **damage)
    with pytest.raises(ProjectError, match="workspace: expected the files of a run that ended, got one that cannot be read"):
        find_result(root, root, "workspace")


def test_a_comparison_makes_no_database_and_without_git_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = _workspace(tmp_path)
    assert other_seeds(root, {}, "test_accuracy") == []
    with pytest.raises(ProjectError, match="got no revision of this name, and there is no MLflow database"):
        find_result(root, root, "no-such-run")
    assert not list(root.glob("mlflow.db*"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProjectError, match="git: expected the program on PATH"):
        find_result(root, root, "HEAD")


def test_without_an_answer_of_mlflow_only_the_spread_of_seeds_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    assert seed_scores(tmp_path, RunResult("x", {}, {})) == []
    assert "the spread between seeds is unknown: MLflow cannot open" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, two_seeds: Path) -> Project:
    """A project with two runs, the first of them committed."""
    project = copy_prepared(two_seeds / "project", tmp_path_factory.mktemp("compare") / "project")
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "seed 0")
    return project


@pytest.mark.slow
def test_a_run_is_the_same_in_the_workspace_in_git_and_in_mlflow(seeds: Project) -> None:
    first, second = sorted(seeds.runs(), key=lambda run: run.data.params["train.seed"])
    cache = seeds.root / ".dvc" / "cache"
    here, commit, logged = (find_result(seeds.root, cache, name) for name in ("workspace", "HEAD", first.info.run_id))
    for other in (commit, logged):
        difference = compare_runs(here, other)
        assert difference.params == {}
        assert difference.paired is not None
        assert (difference.paired.only_first, difference.paired.only_second, difference.paired.p_value) == (0, 0, 1.0)
        assert other.history == here.history
        assert other.metrics == here.metrics
        assert all(one == pytest.approx(value) for one, value in difference.metrics.values())
    assert re.fullmatch(r"[0-9]+ MiB|[0-9.]+ GiB", logged.facts["peak memory"])
    named = find_result(seeds.root, cache, second.info.run_name)
    assert compare_runs(here, named).params == {"train.seed": ("0", "1")}
    for name in ("no-such-run", "--all"):
        with pytest.raises(ProjectError, match="expected one run, got no run of this name; name workspace, a git revision"):
            find_result(seeds.root, cache, name)


@pytest.mark.slow
def test_the_page_and_the_json_say_the_same(seeds: Project, tmp_path: Path) -> None:
    second = max(seeds.runs(), key=lambda run: run.data.params["train.seed"]).info.run_id
    output = seeds.bigstep("compare", "HEAD", second)
    text = seeds.bigstep("compare", "HEAD", second, "--json")
    (found,) = json.loads(text[text.rindex("\n[\n") :])  # before it what was printed on stderr
    assert found["params"] == {"train.seed": ["0", "1"]}
    assert found["paired"]["num_samples"] == 359
    assert " ".join(found["verdict"].split()) in " ".join(output.split())
    assert any("between 2 seeds" in text for text in found["texts"])
    page = seeds.root / "results" / "compare" / "report.html"
    assert found["verdict"].split(":")[0] in look(page.as_uri(), tmp_path / "page.png", 3, "1280,900")
    for layout in measure(page, tmp_path):
        assert layout == Layout(0, 2, 0, []), "loss and accuracy"
    assert 'text-anchor="middle">samples seen<' in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_ten_runs_are_compared_on_one_page_in_ten_seconds(seeds: Project) -> None:
    ids = [run.info.run_id for run in seeds.runs()]
    compare(seeds.root, ids)  # with what is imported once
    started = time.process_time()
    assert compare(seeds.root, ["HEAD", *(ids[number % 2] for number in range(9))]) == 0
    assert time.process_time() - started < 10
    page = (seeds.root / "results" / "compare" / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 9
    assert page.count('class="curve" style="stroke:#') == 2 * 10, "loss and accuracy of ten runs"

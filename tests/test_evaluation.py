import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn import metrics
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from bigstep.config.evaluate import EvaluateConfig
from bigstep.config.train import TrainConfig
from bigstep.data.store import Store
from bigstep.errors import ModelError
from bigstep.evaluation.classification import Answers, ClassScores, Scores, confusion_matrix, score
from bigstep.evaluation.predictions import predict_batches
from bigstep.models.classifier import Classifier
from bigstep.models.model_files import ModelCard
from bigstep.planning.slicing_record import SlicingRecord
from bigstep.report.card import CardStory, PartResult, write_card
from bigstep.report.charts import Chart, Series, draw_chart
from bigstep.report.classification_report import class_table
from bigstep.report.evaluation_page import PageTable, write_page
from bigstep.report.evaluation_plots import draw_calibration, draw_confusion, draw_mistakes, short_name
from bigstep.report.run_sections import parameter_section
from bigstep.report.slicing_section import slicing_section
from bigstep.report.training_curves import draw_curves
from bigstep.tasks.classification import Classification
from conftest import random_images

CLASSES = ("a", "b", "c", "d", "e", "f")
LABELS = np.array([0, 0, 1, 2, 3, 5])
SHARES = np.full((6, 6), 0.04, np.float32)
SHARES[range(6), [0, 1, 1, 2, 3, 4]] = 0.8


def test_the_scores_are_those_counted_by_hand() -> None:
    scores = score(Answers.of(SHARES, LABELS), CLASSES, calibration_bins=10)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.loss == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.04)) / 6, rel=1e-6)
    assert scores.calibration_error == pytest.approx(0.8 - 4 / 6, rel=1e-6)
    assert scores.classes[0] == ClassScores("a", 1.0, 0.5, pytest.approx(2 / 3), 2)
    assert scores.classes[4].support == 0
    assert scores.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1 + 1 + 0 + 0) / 6)


def test_the_fifth_likeliest_counts_and_the_sixth_does_not() -> None:
    shares = np.tile(np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.04], np.float32), (6, 1))
    assert score(Answers.of(shares, np.arange(6)), CLASSES, calibration_bins=5).top5_accuracy == pytest.approx(5 / 6)


@pytest.mark.parametrize("count", [2, 5, 6])
def test_of_five_classes_or_fewer_there_is_no_top_five_accuracy(count: int) -> None:
    """It would always be 1."""
    shares, labels = _many(count)
    totals = score(Answers.of(shares, labels), tuple(map(str, range(count))), calibration_bins=5).summary()
    assert list(totals) == ["accuracy", *(["top5_accuracy"] if count > 5 else []), "loss", "macro_f1", "calibration_error"]


@pytest.mark.parametrize(("num_classes", "num_bins", "count"), [(2, 5, 50), (6, 15, 300), (40, 10, 1000), (7, 3, 1)])
@pytest.mark.parametrize("sharpness", [0.5, 40.0])
def test_the_scores_are_those_of_scikit_learn_and_torchmetrics(
    num_classes: int, num_bins: int, count: int, sharpness: float
) -> None:
    """To the bit: one class more than the labels use, probabilities of exactly 0 and 1, and ties."""
    generator = np.random.default_rng(num_classes)
    logits = torch.from_numpy(generator.normal(size=(count, num_classes)).round(1).astype(np.float32) * sharpness)
    shares, labels = logits.softmax(dim=1).numpy(), generator.integers(0, num_classes - 1, count)
    found = score(Answers.of(shares, labels), tuple(map(str, range(num_classes))), calibration_bins=num_bins)
    double, indices, predicted = shares.astype(np.float64), list(range(num_classes)), shares.argmax(axis=1)
    double /= double.sum(axis=1, keepdims=True)
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    assert [(item.precision, item.recall, item.f1, item.support) for item in found.classes] == list(zip(*expected, strict=True))
    assert found.macro_f1 == np.mean(expected[2])
    assert found.accuracy == metrics.accuracy_score(labels, predicted)
    assert found.loss == metrics.log_loss(labels, double, labels=indices)
    if num_classes > 5:
        assert found.top5_accuracy == metrics.top_k_accuracy_score(labels, double, k=5, labels=indices)
    tensors = torch.from_numpy(double), torch.from_numpy(labels)
    assert found.calibration_error == float(multiclass_calibration_error(*tensors, num_classes=num_classes, n_bins=num_bins))
    matrix = confusion_matrix(labels, predicted, num_classes)
    assert np.array_equal(matrix, metrics.confusion_matrix(labels, predicted, labels=indices))


def test_probabilities_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="expected finite probabilities"):
        Answers.of(np.full((1, 6), np.nan, np.float32), LABELS[:1])


def test_probabilities_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    classifier = Classifier(network, mean=(0.5,), std=(0.5,), network_channels=1)
    images = torch.from_numpy(random_images(10, 8, 1)).permute(0, 3, 1, 2)
    labels = torch.arange(10)
    ((whole, given),) = predict_batches(classifier, Classification(CLASSES), [(images, labels)])
    cut = [(images[:7], labels[:7]), (images[7:], labels[7:])]
    batches = list(predict_batches(classifier, Classification(CLASSES), cut))
    parts = np.concatenate([part for part, _ in batches])
    assert given.tolist() == [label for _, part in batches for label in part] == list(range(10))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-6)


def test_pictures_are_the_same_bytes_again(tmp_path: Path) -> None:
    history = [{"epoch": n, "train_loss": 1 / (n + 1), "val_loss": 2 / (n + 1), "val_accuracy": n / 9} for n in range(9)]
    images = random_images(4, 8, 3)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_curves(history, tmp_path / name / "curves.png")
        draw_confusion(LABELS, SHARES.argmax(axis=1), CLASSES, tmp_path / name / "confusion.png")
        draw_calibration(SHARES.max(axis=1), SHARES.argmax(axis=1) == LABELS, 10, tmp_path / name / "calibration.png")
        draw_mistakes(images, ["$x_1", "b", "c", "d"], tmp_path / name / "mistakes.png")
        draw_mistakes(images[:0], [], tmp_path / name / "none.png")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_a_loss_below_zero_shows_it(tmp_path: Path) -> None:
    for last in (-1.0, -2.0):
        losses = enumerate((1.0, -3.0, last, -3.0))
        history = [{"epoch": n, "train_loss": loss, "val_loss": loss, "val_accuracy": 1.0} for n, loss in losses]
        draw_curves(history, tmp_path / f"{last}.png")
    assert (tmp_path / "-1.0.png").read_bytes() != (tmp_path / "-2.0.png").read_bytes()


def test_names_from_the_data_are_escaped_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    scores = Scores(0.5, 1.0, 0.7, 0.5, 0.1, (ClassScores(evil, 1, 1, 1, 3),))
    (tmp_path / "a.png").write_bytes(b"picture")
    write_page(evil, scores.summary(), {"x": evil}, class_table(scores), {evil: "a.png"}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in text
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4
    assert not re.search(r'="[^"]*<', text)


def test_long_and_unprintable_names_are_cut_for_pictures() -> None:
    assert short_name("a\nb\x00c") == "a?b?c"
    assert len(short_name("x" * 50)) == 18


def _many(count: int, images: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(0)
    logits, labels = dice.normal(size=(images, count)), dice.integers(0, count, images)
    logits[np.arange(images), labels] += 2.0
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return shares.astype(np.float32), labels


@pytest.mark.parametrize("count", [6, 10, 150])
def test_scores_of_batches_are_those_of_the_libraries_on_the_whole_matrix(count: int) -> None:
    """To the last bit: metrics.json is compared byte by byte."""
    from sklearn.metrics import log_loss, top_k_accuracy_score
    from torchmetrics.functional.classification import multiclass_calibration_error

    shares, labels = _many(count)
    parts = [Answers.of(shares[start : start + 256], labels[start : start + 256]) for start in range(0, len(labels), 256)]
    scores = score(Answers.joined(parts), tuple(map(str, range(count))), calibration_bins=15)
    double = shares.astype(np.float64)
    double /= double.sum(axis=1, keepdims=True)
    assert scores.loss == log_loss(labels, double, labels=range(count))
    assert scores.top5_accuracy == top_k_accuracy_score(labels, double, k=5, labels=range(count))
    expected = multiclass_calibration_error(torch.from_numpy(double), torch.from_numpy(labels), num_classes=count, n_bins=15)
    assert scores.calibration_error == float(expected)
    assert scores.accuracy == (shares.argmax(axis=1) == labels).mean()


def test_pictures_and_page_of_a_thousand_classes_show_those_that_matter(tmp_path: Path) -> None:
    shares, labels = _many(1000)
    names = tuple(f"class number {index}" for index in range(1000))
    predicted = shares.argmax(axis=1)
    predicted[labels == 7] = 8  # wrong each time
    draw_confusion(labels, predicted, names, tmp_path / "confusion.png")
    scores = score(Answers.of(shares, labels), names, calibration_bins=15)
    write_page("many", scores.summary(), {}, class_table(scores), {"Confusion": "confusion.png"}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "By class: the 50 lowest F1 of 1,000, all in classes.csv" in text
    assert text.count("<tr><th>class number") == 50
    assert min(scores.classes, key=lambda item: item.f1).name in text
    assert (tmp_path / "report.html").stat().st_size < 500_000


def _card(
    digits: Store,
    names: tuple[str, ...],
    table: PageTable,
    path: Path,
    task: str = "classification",
    accuracy: float = 0.9,
) -> str:
    model = ModelCard({"name": "small_cnn"}, names, 8, 1, (0.3,), (0.4,), "float32", 64, 3, 60, 0.5, 0.9, "0", "1", task=task)
    manifest = replace(digits.manifest, classes=names, source="some*where")
    tested = PartResult("Good.", "The weakest is one.", {"accuracy": accuracy}, table, "Calm.", 100, 2)
    write_card(CardStory(model, {"seed": 3}, [("train.seed", "3", "0")]), manifest, tested, path)
    return path.read_text(encoding="utf-8")


def test_a_card_escapes_names_and_lists_few_of_many_classes(digits: Store, tmp_path: Path) -> None:
    evil = "<b>|a_b|\n# *x* `y`"
    text = _card(
        digits, (evil, "a_b"), PageTable(("class", "F1", "images"), [(evil, "0.5", "3")], [0], "lowest F1"), tmp_path / "c"
    )
    assert "| &lt;b>\\|a_b\\| # \\*x\\* \\`y\\` | 0.5 | 3 |" in text
    assert "# Model card: small_cnn on some\\*where\n" in text
    assert "By class, 1 of 1 have fewer than 10 test samples" in text
    assert "is 0.8256 to 0.9448." in text  # Wilson's interval of 0.9 with 100 samples
    assert "2 test images are in another part" in text
    names = tuple(f"class number {index}" for index in range(1000))
    rows = [(name, "0.500", "50") for name in names]
    many = _card(digits, names, PageTable(("class", "F1", "images"), rows, range(999, -1, -1), "lowest F1"), tmp_path / "c")
    assert "The 30 lowest F1 of 1,000; classes.csv has all." in many
    assert "| class number 999 |" in many
    assert len(many) < 5000


def test_scores_in_a_small_unit_keep_their_digits(digits: Store, tmp_path: Path) -> None:
    table = PageTable(("number", "MAE", "images"), [("a", "1e-6", "30")], [0], "worst")
    text = _card(digits, ("a",), table, tmp_path / "c", task="regression", accuracy=1e-6)
    assert "| accuracy | 1.000e-06 |" in text
    (result,) = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 1e-6}]
    write_page("small", {"mae": 2.34567e-6, "r2": 0.0, "loss": -0.5}, {}, table, {}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(shown in page for shown in ("2.346e-06", "0.0000", "-0.5000"))


def test_a_metric_of_the_projects_own_that_is_called_accuracy_is_no_share(digits: Store, tmp_path: Path) -> None:
    table = PageTable(("class", "F1", "images"), [("a", "0.5", "30")], [0], "lowest F1")
    text = _card(digits, ("a", "b"), table, tmp_path / "c", task="multilabel", accuracy=93.0)
    assert "93.0" in text
    assert "95 %" not in text


def test_charts_have_whole_epochs_every_name_and_no_script() -> None:
    epochs = [float(number) for number in range(1, 11)]
    series = Series("<loss>", epochs, [1 / number for number in epochs])
    chart = draw_chart(Chart("Loss", "epoch", [series], mark=(7.0, "kept: epoch 7"), level=(0.5, "budget")))
    ticks = re.findall(r'text-anchor="middle">([^<]+)<', chart)
    assert ticks == ["2", "4", "6", "8", "10", "epoch"]
    for text in ("kept: epoch 7", "budget", "&lt;loss&gt;: 0.5 (epoch 2)"):
        assert text in chart
    assert "<script" not in chart
    assert "<loss>" not in chart
    assert draw_chart(Chart("Loss", "epoch", [Series("loss", [1.0], [float("nan")])])) == ""


def test_a_long_curve_is_thinned_and_a_flat_or_wide_one_has_ticks() -> None:
    long = draw_chart(Chart("a", "step", [Series("a", range(100_000), [1.0] * 100_000)]))
    assert long.count("<circle") <= 240
    for values in ([3.0, 3.0], [1e-9, 1e9], [0.0, 0.0], [-2.0, 5e5], [1e18, 1e18]):
        for log in (False, True):
            drawn = draw_chart(Chart("a", "x", [Series("a", [1.0, 2.0], values)], log_y=log))
            assert "nan" not in drawn
            assert 1 <= drawn.count('class="axis"') <= 12


def test_slicing_is_shown_with_budget_choice_and_what_was_measured() -> None:
    predicted, speeds = ((1, 2**20), (16, 2**24), (64, 2**26)), {"contiguous": ((16, 50.0), (64, 60.0))}
    record = SlicingRecord(64, 16, "contiguous", 2**25, predicted, speeds)
    metrics = {"peak_tensor_bytes": [(9, 1.25 * 2**24)], "images_per_second": [(9, 55.0)], "training_seconds": [(9, 65.0)]}
    body = slicing_section(record, metrics).body
    assert body.count('<svg viewBox="0 0 440') == 2
    for text in (">used: 16<", ">budget<", "predicted: 16 (micro-batch size 16)", "20 MiB (+25.0%)", "this run: 20 (", "1:05"):
        assert text in body
    assert "measured before it, contiguous: 60 (micro-batch size 64)" in body
    unknown = slicing_section(SlicingRecord(64, 16, "contiguous", None, predicted, {}), {}).body
    assert unknown.count('<svg viewBox="0 0 440') == 1
    assert "no limit" in unknown


def test_parameters_that_differ_come_first() -> None:
    html = parameter_section((TrainConfig(seed=3), EvaluateConfig())).body
    assert re.search(r"<th>train.seed</th><td>3</td><td>0</td>", html)
    assert html.index("train.seed") < html.index("<details>") < html.index("train.epochs")


@pytest.mark.parametrize(("values", "text"), [({}, "parameters, all as by default"), ({"epochs": 3}, " more as by default")])
def test_parameters_that_differ_come_first_and_the_others_are_counted(values: dict[str, int], text: str) -> None:
    page = parameter_section([TrainConfig.model_validate(values)]).body
    assert text in page
    assert ("default</th>" in page) == bool(values)

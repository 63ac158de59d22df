import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from bigstep.errors import ModelError
from bigstep.evaluation import ClassScores, Scores, confusion_matrix, predict_probabilities, score
from bigstep.models.classifier import Classifier
from bigstep.report.evaluation_page import draw_calibration, draw_confusion, draw_mistakes, short_name, write_page
from bigstep.report.training_curves import draw_curves
from conftest import random_images

CLASSES = ("a", "b", "c", "d", "e", "f")
LABELS = np.array([0, 0, 1, 2, 3, 5])
SHARES = np.full((6, 6), 0.04, np.float32)
SHARES[range(6), [0, 1, 1, 2, 3, 4]] = 0.8


def test_the_scores_are_those_counted_by_hand() -> None:
    scores = score(SHARES, LABELS, CLASSES, calibration_bins=10)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.loss == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.04)) / 6, rel=1e-6)
    assert scores.calibration_error == pytest.approx(0.8 - 4 / 6, rel=1e-6)
    assert scores.classes[0] == ClassScores("a", 1.0, 0.5, pytest.approx(2 / 3), 2)
    assert scores.classes[4].support == 0
    assert scores.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1 + 1 + 0 + 0) / 6)
    assert scores.top5_accuracy <= 1


def test_the_fifth_likeliest_counts_and_the_sixth_does_not() -> None:
    shares = np.tile(np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.04], np.float32), (6, 1))
    assert score(shares, np.arange(6), CLASSES, calibration_bins=5).top5_accuracy == pytest.approx(5 / 6)


def test_of_five_classes_any_answer_is_among_the_top_five() -> None:
    shares = np.tile(np.array([0.6, 0.4], np.float32), (4, 1))
    assert score(shares, np.array([0, 1, 1, 1]), ("x", "y"), calibration_bins=5).top5_accuracy == 1.0


@pytest.mark.parametrize(("num_classes", "num_bins", "count"), [(2, 5, 50), (6, 15, 300), (40, 10, 1000), (7, 3, 1)])
@pytest.mark.parametrize("sharpness", [0.5, 40.0])
def test_the_scores_are_those_of_scikit_learn_and_torchmetrics(
    num_classes: int, num_bins: int, count: int, sharpness: float
) -> None:
    """To the bit: one class more than the labels use, probabilities of exactly 0 and 1, and ties."""
    generator = np.random.default_rng(num_classes)
    logits = torch.from_numpy(generator.normal(size=(count, num_classes)).round(1).astype(np.float32) * sharpness)
    shares, labels = logits.softmax(dim=1).numpy(), generator.integers(0, num_classes - 1, count)
    found = score(shares, labels, tuple(map(str, range(num_classes))), calibration_bins=num_bins)
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
        score(np.full((1, 6), np.nan, np.float32), LABELS[:1], CLASSES, calibration_bins=5)


def test_probabilities_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    classifier = Classifier(network, mean=(0.5,), std=(0.5,), network_channels=1)
    images = torch.from_numpy(random_images(10, 8, 1)).permute(0, 3, 1, 2)
    whole = predict_probabilities(classifier, [(images, images)])
    parts = predict_probabilities(classifier, [(images[:7], images), (images[7:], images)])
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-6)


def test_pictures_are_the_same_bytes_again(tmp_path: Path) -> None:
    history = [{"epoch": n, "train_loss": 1 / (n + 1), "val_loss": 2 / (n + 1), "val_accuracy": n / 9} for n in range(9)]
    images = random_images(4, 8, 3)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_curves(history, tmp_path / name / "curves.png")
        draw_confusion(LABELS, SHARES.argmax(axis=1), CLASSES, tmp_path / name / "confusion.png")
        draw_calibration(SHARES, LABELS, 10, tmp_path / name / "calibration.png")
        draw_mistakes(images, ["$x_1", "b", "c", "d"], tmp_path / name / "mistakes.png")
        draw_mistakes(images[:0], [], tmp_path / name / "none.png")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert path.read_bytes().startswith(b"\x89PNG")


def test_names_from_the_data_are_escaped_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    scores = Scores(0.5, 1.0, 0.7, 0.5, 0.1, (ClassScores(evil, 1, 1, 1, 3),))
    (tmp_path / "a.png").write_bytes(b"picture")
    write_page(evil, scores, {"x": evil}, {evil: "a.png"}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in text
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 4
    assert not re.search(r'="[^"]*<', text)


def test_long_and_unprintable_names_are_cut_for_pictures() -> None:
    assert short_name("a\nb\x00c") == "a?b?c"
    assert len(short_name("x" * 50)) == 18

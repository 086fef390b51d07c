"""Scores of classes and calibration: against loops over images, and against scikit-learn."""

import numpy as np
import pytest

from lrnet_jax.training.metrics import calibration, class_scores, confusion


@pytest.fixture(params=range(5))
def predictions(request):
    """Labels and predictions of six classes: 4 has no images, 5 neither images nor predictions."""
    random = np.random.default_rng(request.param)
    labels = random.integers(0, 4, 60)
    return labels, np.where(random.random(60) < 0.5, labels, random.integers(0, 5, 60))


def test_confusion_counts_label_by_prediction(predictions):
    labels, predicted = predictions
    want = np.zeros((6, 6), int)
    for label, guess in zip(labels, predicted, strict=True):
        want[label, guess] += 1
    np.testing.assert_array_equal(confusion(labels, predicted, 6), want)


def test_scores_of_classes(predictions):
    labels, predicted = predictions
    scores = class_scores(confusion(labels, predicted, 6))
    for c in range(4):
        hits = sum(a == b == c for a, b in zip(labels, predicted, strict=True))
        precision = hits / sum(predicted == c)
        recall = hits / sum(labels == c)
        assert scores.images[c] == sum(labels == c)
        assert scores.precision[c] == pytest.approx(precision)
        assert scores.recall[c] == pytest.approx(recall)
        assert scores.f1[c] == pytest.approx(2 / (1 / precision + 1 / recall))
    assert (scores.images[4], scores.precision[4], scores.f1[4]) == (0, 0, 0)
    assert np.isnan(scores.recall[4])
    assert np.isnan([scores.precision[5], scores.recall[5], scores.f1[5]]).all()


def test_scores_of_classes_are_those_of_scikit_learn(predictions):
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, predicted = predictions
    scores = class_scores(confusion(labels, predicted, 6))
    precision, recall, f1, count = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=range(4)
    )
    np.testing.assert_array_equal(count, scores.images[:4])
    for want, found in ((precision, scores.precision), (recall, scores.recall), (f1, scores.f1)):
        np.testing.assert_allclose(found[:4], want)


def test_calibration_against_a_loop():
    random = np.random.default_rng(0)
    confidence = np.concatenate([random.uniform(0.2, 1, 500), [0.0, 1.0, 0.6]])
    right = random.random(503) < confidence**2
    found = calibration(confidence, right, bins=10)
    error = 0.0
    for number in range(10):
        low, high = number / 10, (number + 1) / 10
        inside = [
            (c, r)
            for c, r in zip(confidence, right, strict=True)
            if low <= c < high or (number == 9 and c == 1)
        ]
        assert found.images[number] == len(inside)
        if not inside:
            assert np.isnan(found.accuracy[number])
            continue
        mean, accuracy = np.mean(inside, axis=0)
        assert found.confidence[number] == pytest.approx(mean)
        assert found.accuracy[number] == pytest.approx(accuracy)
        error += len(inside) / 503 * abs(accuracy - mean)
    assert found.error == pytest.approx(error)
    assert 0.05 < found.error < 0.5


def test_a_calibrated_network_has_no_error():
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.tile([1, 0, 0, 0] * 100 + [1, 1, 1, 0] * 100, 1).astype(bool)
    assert calibration(confidence, right).error == 0

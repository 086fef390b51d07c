"""What predictions say about a classifier: scores of each class, confusions, calibration.

Everything is in numpy, from the labels and the predictions of all images.
"""

from typing import NamedTuple

import numpy as np


class ClassScores(NamedTuple):
    """Scores of each class, (classes,) float64; NaN where a class has no images or predictions.

    Attributes:
      images: int64, its images.
      precision: share of the images taken for it that are of it.
      recall: share of its images that are taken for it: its accuracy.
      f1: 2 * precision * recall / (precision + recall); 0 where none of its images is found, NaN
        only for a class without images and without predictions.
    """

    images: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class Calibration(NamedTuple):
    """How often the network is right where it is so sure.

    Attributes:
      edges: (bins + 1,), of the bins of confidence.
      images: (bins,) int64, images whose confidence is in [edges[i], edges[i + 1]); the last bin
        includes 1.
      confidence: (bins,) mean confidence, NaN for an empty bin.
      accuracy: (bins,) share of right predictions, NaN for an empty bin.
      error: the expected calibration error (ECE), the mean of |accuracy - confidence| over images.
    """

    edges: np.ndarray
    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts images by label (row) and prediction (column).

    Args:
      labels: (n,) ints below num_classes.
      predicted: (n,) ints below num_classes.
      num_classes: number of classes.

    Returns:
      (num_classes, num_classes) int64.
    """
    places = np.asarray(labels, np.int64) * num_classes + predicted
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_scores(matrix: np.ndarray) -> ClassScores:
    """Precision, recall and F1 of each class, from the matrix of `confusion`."""
    right = np.diag(matrix).astype(np.float64)
    actual, taken = matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return ClassScores(actual, right / taken, right / actual, 2 * right / (actual + taken))


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Calibration:
    """Compares confidence with accuracy, in bins of equal width.

    Args:
      confidence: (n,) probability of the predicted class.
      right: (n,) bool.
      bins: number of them.

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, equation 3.
    """
    edges = np.arange(bins + 1) / bins
    places = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(places, confidence, bins) / count
        accuracy = np.bincount(places, right, bins) / count
    gaps = np.abs(accuracy - mean)[count > 0]
    error = float(np.sum(count[count > 0] * gaps) / max(1, int(count.sum())))
    return Calibration(edges, count, mean, accuracy, error)

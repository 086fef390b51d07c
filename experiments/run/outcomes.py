"""What a network says of every image of an evaluation, and its surest mistakes."""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.run.class_map import Selected
from experiments.run.evaluated import Checkpoint
from experiments.run.inputs import eval_batches
from experiments.run.scores import Scores
from lrnet_jax.data.imagenet_names import readable
from lrnet_jax.training.devices import parallel
from lrnet_jax.training.evaluation import Answers, answers, logits_step

SHOWN = 24  # mistakes that are kept with their images
TOP = 5  # classes that are kept of each


class Mistake(NamedTuple):
    """An image of which the network was sure and wrong.

    Attributes:
      confidence: probability of the predicted class.
      position: place in the split.
      label: class of the image.
      share: probability of that class.
      guesses: the most probable classes and their probabilities.
      image: (H, W, 3) uint8.
    """

    confidence: float
    position: int
    label: int
    share: float
    guesses: tuple[tuple[int, float], ...]
    image: np.ndarray


class Outcomes(NamedTuple):
    """What a network says of the images of a split, in their order.

    Attributes:
      label: (n,) ints.
      predicted: (n,) ints, the most probable class.
      confidence: (n,) float64, its probability.
      loss: (n,) float64, cross-entropy in nats.
      rank: (n,) ints, how many classes are ahead of the label.
      mistakes: the surest first.
      classes: names of the classes in words.
    """

    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    rank: np.ndarray
    mistakes: tuple[Mistake, ...]
    classes: tuple[str, ...]

    @property
    def right(self) -> np.ndarray:
        """(n,) bool, whether the label is ahead of all classes."""
        return self.rank == 0

    def scores(self, step: int) -> Scores:
        """Top-1, top-5 and loss."""
        return Scores(
            step=step,
            top1=100 * float(np.mean(self.right)),
            top5=100 * float(np.mean(self.rank < TOP)),
            loss=float(np.mean(self.loss)),
            count=len(self.label),
        )


def collect(
    checkpoint: Checkpoint, on_batch: Callable[[int], object] = lambda images: None
) -> Outcomes:
    """Evaluates a checkpoint image by image.

    Args:
      checkpoint: to evaluate.
      on_batch: called after each batch with the number of its images.
    """
    step = parallel(
        logits_step(checkpoint.functional, checkpoint.normalize),
        precision=checkpoint.config.train.precision,
    )
    batches = eval_batches(checkpoint.dataset, checkpoint.batch_size, with_index=True)
    parts: list[tuple[np.ndarray, ...]] = []
    heap: list[tuple[float, int, Mistake]] = []
    for found in answers(step, checkpoint.variables, batches):
        parts.append(_outcomes(found))
        for mistake in _mistakes(found):
            # By place where two are equally sure, because images cannot be compared.
            heapq.heappush(heap, (mistake.confidence, -mistake.position, mistake))
            if len(heap) > SHOWN:
                heapq.heappop(heap)
        on_batch(len(found.label))
    label, predicted, confidence, loss, rank = map(np.concatenate, zip(*parts, strict=True))
    return Outcomes(
        label, predicted, confidence, loss, rank,
        mistakes=tuple(mistake for _, _, mistake in sorted(heap, reverse=True)),
        classes=_names(checkpoint),
    )  # fmt: skip


def _outcomes(found: Answers) -> tuple[np.ndarray, ...]:
    probabilities = found.probabilities
    rows = np.arange(len(found.label))
    predicted = probabilities.argmax(1)
    with np.errstate(divide="ignore"):  # a share of 0 has an infinite loss
        loss = -np.log(probabilities[rows, found.label])
    return found.label, predicted, probabilities[rows, predicted], loss, found.rank


def _mistakes(found: Answers) -> list[Mistake]:
    """The surest mistakes of a batch."""
    probabilities = found.probabilities
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != found.label)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")[:SHOWN]]
    return [
        Mistake(
            confidence=float(confidence[row]),
            position=int(found.position[row]),
            label=int(found.label[row]),
            share=float(probabilities[row, found.label[row]]),
            guesses=tuple(
                (int(c), float(probabilities[row, c]))
                for c in np.argsort(-probabilities[row], kind="stable")[:TOP]
            ),
            image=found.image[row].copy(),
        )
        for row in surest
    ]


def _names(checkpoint: Checkpoint) -> tuple[str, ...]:
    if checkpoint.classes is not None:
        return readable(checkpoint.classes)
    return tuple(f"class {label}" for label in range(checkpoint.dataset.num_classes))


def image_name(checkpoint: Checkpoint, index: int) -> str:
    """Names an image by its file or by its place."""
    split = getattr(checkpoint.dataset, "evaluation", None)  # of files; images in memory have none
    if split is None:
        return f"image {index}"
    return split.describe(index)


def network_classes(checkpoint: Checkpoint, classes: np.ndarray) -> np.ndarray:
    """The network's classes for some of the data set's."""
    functional = checkpoint.functional
    if not isinstance(functional, Selected):
        return classes
    return np.array(functional.columns)[classes]

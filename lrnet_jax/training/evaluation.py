"""Top-1, top-5 and loss over a whole split, and what the network says of each image."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from lrnet_jax.data.dataset import Batch
from lrnet_jax.functional import Functional, Variables
from lrnet_jax.training.devices import AXIS, DeviceBatch, shard
from lrnet_jax.training.steps import Sums


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured.

    Attributes:
      top1: percent of the images whose label has the highest logit.
      top5: percent of the images whose label is among the five highest.
      loss: mean cross-entropy, in nats.
      count: number of images.
    """

    top1: float
    top5: float
    loss: float
    count: int


def evaluate(
    step: Callable[[Variables, DeviceBatch], Sums],
    variables: Variables,
    batches: Iterable[Batch],
    on_batch: Callable[[int], object] = lambda images: None,
) -> Evaluation:
    """Runs the parallel evaluation step over host batches.

    The numbers are the same bit for bit where the devices and the batch size are the same, because
    sums are taken in a fixed order.

    Args:
      step: `parallel(eval_step(...))`.
      variables: params and batch_stats, replicated.
      batches: host batches of image, label and mask. Every image comes once; the padding of the
        last batch is masked.
      on_batch: called after each batch is under way, with the number of its images.
    """
    sums = []
    for batch in batches:
        sums.append(step(variables, shard(batch)))
        on_batch(int(np.sum(batch["mask"])))
        if len(sums) >= 2:
            # Waiting for the batch before the last keeps the device busy and memory bounded.
            jax.block_until_ready(sums[-2])
    host: list[Sums] = jax.device_get(sums)
    count = sum(int(s.count) for s in host)
    return Evaluation(
        top1=100 * sum(int(s.top1) for s in host) / count,
        top5=100 * sum(int(s.top5) for s in host) / count,
        loss=sum(float(s.loss) for s in host) / count,
        count=count,
    )


class Answers(NamedTuple):
    """What a network says of the images of a batch, without its padding.

    Attributes:
      image: (n, H, W, 3) uint8.
      label: (n,) int32.
      position: (n,) int32, places in the split.
      logits: (n, classes) float32.
    """

    image: np.ndarray
    label: np.ndarray
    position: np.ndarray
    logits: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """The softmax of the logits, (n, classes) float64."""
        wide = self.logits.astype(np.float64)
        shares = np.exp(wide - wide.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    @property
    def rank(self) -> np.ndarray:
        """How many classes are ahead of the label, (n,) ints. A tie counts as ahead."""
        label_logits = np.take_along_axis(self.logits, self.label[:, None], 1)
        return np.sum(~(self.logits < label_logits), 1) - 1


def logits_step(
    functional: Functional, normalize: Callable[[jax.Array], jax.Array]
) -> Callable[[Variables, DeviceBatch], jax.Array]:
    """Builds the step of one device that gives the logits of the batch of all devices.

    Args:
      functional: the network.
      normalize: images uint8 -> normalised float images.

    Returns:
      ((params, batch_stats), batch) -> (B, classes) float32. The batch holds image.
    """

    def step(variables: Variables, batch: DeviceBatch) -> jax.Array:
        logits = functional.apply(*variables, normalize(batch["image"]))
        return jax.lax.all_gather(logits, AXIS, tiled=True)

    return step


def answers(
    step: Callable[[Variables, DeviceBatch], jax.Array],
    variables: Variables,
    batches: Iterable[Batch],
) -> Iterator[Answers]:
    """Runs the parallel step of `logits_step` over host batches.

    Args:
      step: `parallel(logits_step(...))`, of a single process.
      variables: params and batch_stats, replicated.
      batches: host batches of image, label, mask and index.
    """
    before: tuple[Batch, jax.Array] | None = None
    for batch in batches:
        logits = step(variables, shard({"image": batch["image"]}))
        if before is not None:  # the device works while the host looks at the batch before
            yield _answers(*before)
        before = batch, logits
    if before is not None:
        yield _answers(*before)


def _answers(batch: Batch, logits: jax.Array) -> Answers:
    mask = batch["mask"]
    return Answers(
        batch["image"][mask], batch["label"][mask], batch["index"][mask], np.asarray(logits)[mask]
    )

"""Top-1, top-5 and loss over a whole split."""

import dataclasses
from collections.abc import Callable, Iterable

import jax

from lrnet_jax.data.dataset import Batch
from lrnet_jax.functional import Variables
from lrnet_jax.training.devices import DeviceBatch, shard
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
) -> Evaluation:
    """Runs the parallel evaluation step over host batches.

    The numbers are the same bit for bit where the devices and the batch size are the same, because
    sums are taken in a fixed order.

    Args:
      step: `parallel(eval_step(...))`.
      variables: params and batch_stats, replicated.
      batches: host batches of image, label and mask. Every image comes once; the padding of the
        last batch is masked.
    """
    sums = []
    for batch in batches:
        sums.append(step(variables, shard(batch)))
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

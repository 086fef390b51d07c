"""Top-1, top-5 and loss over a whole split."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from lrnet_jax.functional import Tree
from lrnet_jax.training.devices import Batch, shard


def evaluate(
    step: Callable[[tuple[Tree, Tree], Batch], dict[str, jax.Array]],
    params: Tree,
    batch_stats: Tree,
    batches: Iterable[Batch],
) -> dict[str, Any]:
    """Runs the parallel evaluation step over host batches.

    Args:
      step: `parallel(eval_step(...))`.
      params: replicated.
      batch_stats: replicated.
      batches: host batches of image, label, mask; every image once, the tail masked.

    Returns:
      top1 and top5 in percent, loss (nats), count (images). The same numbers bit for bit when
      devices and batch size are the same: sums are taken in a fixed order.
    """
    sums = []
    for batch in batches:
        sums.append(step((params, batch_stats), shard(batch)))
        if len(sums) >= 2:
            # Wait for the batch before the last: the device stays busy, memory stays bounded.
            jax.block_until_ready(sums[-2])
    host = jax.device_get(sums)
    totals = {name: sum(float(s[name]) for s in host) for name in host[0]}
    count = totals["count"]
    return {
        "top1": 100 * totals["top1"] / count,
        "top5": 100 * totals["top5"] / count,
        "loss": totals["loss"] / count,
        "count": int(count),
    }

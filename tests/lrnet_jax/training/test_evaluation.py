"""Evaluation of a whole split."""

import numpy as np
import pytest

from lrnet_jax.training import steps
from lrnet_jax.training.devices import parallel
from lrnet_jax.training.evaluation import evaluate


class ImageLogits:
    """Stands for a network whose logits are the images' first row."""

    def apply(self, params, batch_stats, images):
        del params, batch_stats
        return images[:, 0, :, 0]


def test_evaluation_counts_ranks_and_leaves_padding_out():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(8, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 8).astype(np.int32)
    logits[5] = 0.0  # all equal: scores nothing
    mask = np.array([True] * 6 + [False] * 2)
    order = np.argsort(-logits, axis=1)
    top = [[labels[i] in order[i, :k] for i in range(5)] for k in (1, 5)]
    losses = [np.log(np.exp(logits[i]).sum()) - logits[i, labels[i]] for i in range(6)]

    step = parallel(steps.eval_step(ImageLogits(), lambda x: x))
    images = np.broadcast_to(logits[:, None, :, None], (8, 2, 7, 3))
    batch = {"image": images, "label": labels, "mask": mask}
    result = evaluate(step, ({}, {}), [batch, batch])
    assert result.count == 12
    assert result.top1 == pytest.approx(100 * sum(top[0]) / 6)
    assert result.top5 == pytest.approx(100 * sum(top[1]) / 6)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)

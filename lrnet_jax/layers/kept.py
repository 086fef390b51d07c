"""What is kept for the backward pass of layers that are otherwise computed again.

A layer's output before its normalisation, the statistics, queries, keys, and the results of local
relations and blocks are kept: they are small, or cost a product or a pass of statistics, or the
next layer keeps them in any case. What is computed again is cheap and large: normalisation, ReLU
inside a block, pool, and the stem's map of the image.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.api import RESIDUALS_NAME

_NAME = "kept"
_POLICY = jax.checkpoint_policies.save_only_these_names(_NAME, RESIDUALS_NAME)


def keep(x: jax.Array) -> jax.Array:
    """Marks an array that `recomputed` layers keep. Elsewhere it does nothing."""
    return checkpoint_name(x, _NAME)


def recomputed(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call of a module that keeps its arguments and the marked arrays alone."""
    return nnx.remat(call, policy=_POLICY)

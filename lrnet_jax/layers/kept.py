"""What is kept for the backward pass of layers that are otherwise computed again.

A layer's output before its normalisation, the statistics, queries, keys, the values that come with
them from one rule, and the results of local relations and blocks are kept: they are small, or cost
a product or a pass of statistics, or the next layer keeps them in any case. What is computed again
is cheap and large: other normalisations with their ReLU, pool, and the stem's map of the image.
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
    """A call of a module that keeps its arguments and the marked arrays alone.

    A module that the call does not change is not touched, so that a network in evaluation mode may
    be a constant of a traced function. `nnx.remat` would write all variables back.
    """

    def run(module: Any, *arguments: Any) -> Any:
        graph, state = nnx.split(module)
        paths: list[Any] = []

        def pure(state: Any, *arguments: Any) -> Any:
            inner = nnx.merge(graph, state)
            before = dict(nnx.to_flat_state(nnx.as_pure(nnx.state(inner))))
            result = call(inner, *arguments)
            after = nnx.to_flat_state(nnx.as_pure(nnx.state(inner)))
            changed = {path: value for path, value in after if value is not before[path]}
            paths[:] = changed
            return result, tuple(changed.values())

        result, values = jax.checkpoint(pure, policy=_POLICY)(state, *arguments)
        if paths:
            nnx.update(module, nnx.from_flat_state(dict(zip(paths, values, strict=True))))
        return result

    return run

"""What is kept for the backward pass of layers that are otherwise computed again.

In the stem, the map of the image, the normalisation with its ReLU and the pool are computed again:
they are large, and cost a pass. In a block it is the last channel transformation: it makes the
widest map of the block from the narrow one before it, so that its product costs less time for each
byte than the normalisations do. Everything else that the backward pass needs is kept.
"""

import itertools
from collections.abc import Callable, Iterator
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


def first_recomputed(call: Callable[..., Any], number: int) -> Iterator[Callable[..., Any]]:
    """The call without end, the first ones as `recomputed`."""
    return itertools.chain([recomputed(call)] * number, itertools.repeat(call))

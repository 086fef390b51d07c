"""The norm of a gradient."""

import jax
import jax.numpy as jnp
import optax

from lrnet_jax.functional import Tree
from pallas_kernels.platform_switch import by_platform

# Where longer arrays are joined too, the copy costs more than it saves.
JOINED = 2**16


def _joined_norm(tree: Tree) -> jax.Array:
    """The norm, with all short arrays as one.

    XLA:CPU compiles up to three functions for each shape that is summed. LR-Net-50 has 51 shapes.
    """
    arrays = jax.tree.leaves(tree)
    short = [array.ravel() for array in arrays if array.size < JOINED]
    long = [array for array in arrays if array.size >= JOINED]
    return optax.tree.norm([jnp.concatenate(short), *long] if short else long)


def _scalar(tree: Tree) -> jax.Array:
    return jnp.zeros((), jnp.result_type(*jax.tree.leaves(tree), jnp.float32))


# The Euclidean norm of all elements of a tree of floating-point arrays, a scalar.
global_norm = by_platform(optax.tree.norm, shapes=_scalar, cpu=_joined_norm)

"""Small stems, what they are in float64, and how far a kernel may be from that."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from pallas_kernels.pallas import stem
from pallas_kernels.pallas.stem import Inputs, Maps, Sums, map_shapes


@dataclasses.dataclass(frozen=True)
class StemProblem:
    images: int
    height: int
    width: int
    inputs: int
    channels: int
    keys: int
    queries: int
    groups: int
    stride: int

    def arrays(self, dtype):
        """Inputs and gradients of the maps, whose numbers bfloat16 holds exactly."""
        rng = np.random.default_rng(0)

        def normal(*shape, dtype=jnp.float32):
            return jnp.asarray(rng.normal(0.1, 1, shape)).astype(jnp.bfloat16).astype(dtype)

        inputs = Inputs(
            normal(self.images, self.height, self.width, self.inputs, dtype=dtype),
            normal(self.groups, self.inputs),
            normal(self.groups, self.inputs, self.channels),
            normal(self.channels),
            normal(self.channels, self.keys),
            normal(self.channels, self.queries),
        )
        shapes = map_shapes(inputs, self.stride)
        return inputs, Maps(*(normal(*shape.shape, dtype=dtype) for shape in shapes))

    def run(self, interpret, inputs, d_maps):
        """Both kernels: maps and sums."""
        maps = stem.forward(inputs, self.stride, interpret=interpret)
        return maps, stem.backward(inputs, d_maps, self.stride, interpret=interpret)


STEMS = {
    # Blocks are whole, and a program has two of them.
    "network": StemProblem(3, 34, 32, 3, 64, 8, 8, 1, 2),
    # The last block of a group is partial, and so are channels and columns.
    "ghost": StemProblem(4, 5, 7, 3, 20, 5, 4, 2, 2),
    "grey": StemProblem(2, 7, 6, 1, 16, 3, 5, 2, 1),
    "wide": StemProblem(1, 10, 11, 4, 100, 7, 6, 1, 3),
}


def in_float64(inputs, d_maps, stride):
    """Maps and sums; keys, queries and their projections are of values rounded to x's dtype."""
    groups, channels = inputs.mean.shape[0], inputs.bias.shape[0]
    x, mean, weights, bias, key, query = (np.asarray(a, np.float64) for a in inputs)
    d_value, d_key, d_query = (np.asarray(a, np.float64) for a in d_maps)
    size = x.shape[:3]
    centred = x.reshape(groups, -1, x.shape[-1]) - mean[:, None]
    linear = centred @ weights + bias
    value = np.maximum(linear, 0).reshape(*size, channels)
    rounded = np.asarray(jnp.asarray(value, jnp.float32).astype(inputs.x.dtype), np.float64)
    strided = rounded[:, ::stride, ::stride]
    maps = Maps(value, rounded @ key, strided @ query)
    gradient = d_value + d_key @ key.T
    gradient[:, ::stride, ::stride] += d_query @ query.T
    gradient = np.where(linear > 0, gradient.reshape(linear.shape), 0)
    sums = Sums(
        gradient.sum(1),
        np.einsum("npi,npc->nic", centred, gradient),
        np.einsum("bhwc,bhwk->ck", rounded, d_key),
        np.einsum("bhwc,bhwk->ck", strided, d_query),
    )
    return maps, sums


def faults(problem, dtype, maps, sums):
    """What is too far from float64, a line each."""
    inputs, d_maps = problem.arrays(dtype)
    exact_maps, exact_sums = in_float64(inputs, d_maps, problem.stride)
    rounding = 2.0 ** -(24 if dtype == jnp.float32 else 8)
    found = []
    for ours, exact in ((maps, exact_maps), (sums, exact_sums)):
        for name, a, b in zip(ours._fields, ours, exact, strict=True):
            a = np.asarray(a, np.float64)
            # 100 roundings of float32 at the size of the sums, whatever the dtype is.
            bound = 100 * 2.0**-24 * np.abs(b).max()
            if ours is maps:
                bound = bound + rounding * np.abs(b)
            if name in ("key", "query"):
                # A value next to a tie may be rounded to the other side: a few of them, of size 1.
                bound = bound + 2 * rounding
            if a.shape != b.shape or not np.all(np.abs(a - b) <= bound):
                kind = type(ours).__name__.lower()
                found.append(f"{kind}.{name}: error {np.abs(a - b).max():.2e}")
    return found

"""Small blocks, what the kernels make of them in float64, and how far a kernel may be from that."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from pallas_kernels.pallas import projections
from pallas_kernels.pallas.projections import Inputs, Maps
from pallas_kernels.pallas.stem.arrays import map_shapes


@dataclasses.dataclass(frozen=True)
class ProjectionProblem:
    images: int
    height: int
    width: int
    channels: int
    keys: int
    queries: int
    groups: int
    stride: int

    def arrays(self, dtype):
        """Inputs, gradients of the maps, slope and constant, whose numbers bfloat16 holds."""
        rng = np.random.default_rng(0)

        def normal(*shape, dtype=jnp.float32):
            return jnp.asarray(rng.normal(0.1, 1, shape)).astype(jnp.bfloat16).astype(dtype)

        parameter = self.groups, self.channels
        inputs = Inputs(
            normal(self.images, self.height, self.width, self.channels, dtype=dtype),
            normal(*parameter),
            normal(*parameter),
            normal(self.channels, self.keys),
            normal(self.channels, self.queries),
        )
        d_maps = Maps(*(normal(*s.shape, dtype=dtype) for s in map_shapes(inputs, self.stride)))
        return inputs, d_maps, normal(*parameter), normal(*parameter)

    def run(self, interpret, inputs, d_maps, slope, constant):
        """All three kernels: maps, sums and the gradient of x."""
        maps = projections.forward(inputs, self.stride, interpret=interpret)
        sums = projections.sums(inputs, d_maps, self.stride, interpret=interpret)
        others = d_maps, slope, constant, self.stride
        return maps, sums, projections.gradient(inputs, *others, interpret=interpret)


PROJECTIONS = {
    # Several blocks in a program, and channels that are filled up to 104 as in a network.
    "res2": ProjectionProblem(2, 14, 14, 104, 13, 13, 1, 1),
    # 256 channels and 64 columns when filled up; the last block of a group is partial.
    "strided": ProjectionProblem(2, 7, 5, 200, 25, 25, 2, 2),
    "odd": ProjectionProblem(4, 5, 7, 20, 5, 4, 2, 3),
}


def in_float64(inputs, d_maps, slope, constant, stride):
    """Maps, sums and gradient; keys, queries and their projections are of rounded values."""
    groups, (channels, _) = inputs.gain.shape[0], inputs.key.shape
    x, gain, offset, key, query = (np.asarray(a, np.float64) for a in inputs)
    d_value, d_key, d_query = (np.asarray(a, np.float64) for a in d_maps)
    slope, constant = (np.asarray(a, np.float64)[:, None] for a in (slope, constant))
    rows = x.reshape(groups, -1, channels)
    linear = rows * gain[:, None] + offset[:, None]
    value = np.maximum(linear, 0).reshape(x.shape)
    rounded = np.asarray(jnp.asarray(value, jnp.float32).astype(inputs.x.dtype), np.float64)
    strided = rounded[:, ::stride, ::stride]
    gradient = d_value + d_key @ key.T
    gradient[:, ::stride, ::stride] += d_query @ query.T
    masked = np.where(linear > 0, gradient.reshape(linear.shape), 0)
    sums = projections.Sums(
        masked.sum(1),
        (masked * rows).sum(1),
        np.einsum("bhwc,bhwk->ck", rounded, d_key),
        np.einsum("bhwc,bhwk->ck", strided, d_query),
    )
    d_x = masked * gain[:, None] + rows * slope - constant
    return Maps(value, rounded @ key, strided @ query), sums, d_x.reshape(x.shape)


def faults(problem, dtype, maps, sums, d_x):
    """What is too far from float64, a line each."""
    exact = in_float64(*problem.arrays(dtype), problem.stride)
    rounding = 2.0 ** -(24 if dtype == jnp.float32 else 8)
    found = []
    for name, ours, theirs in (
        *((f"maps.{name}", a, b) for name, a, b in zip(Maps._fields, maps, exact[0], strict=True)),
        *((f"sums.{name}", a, b) for name, a, b in zip(sums._fields, sums, exact[1], strict=True)),
        ("gradient", d_x, exact[2]),
    ):
        a = np.asarray(ours, np.float64)
        # 100 roundings of float32 at the size of the sums, whatever the dtype is.
        bound = 100 * 2.0**-24 * np.abs(theirs).max()
        if not name.startswith("sums"):
            bound = bound + rounding * np.abs(theirs)
        if name in ("maps.key", "maps.query"):
            # A value next to a tie may be rounded to the other side: a few of them, of size 1.
            bound = bound + 2 * rounding
        if a.shape != theirs.shape or not np.all(np.abs(a - theirs) <= bound):
            found.append(f"{name}: error {np.abs(a - theirs).max():.2e}")
    return found

"""What the tests of values, keys and queries that are computed together have in common."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.pallas.stem import Maps


def cotangent(strides=1, width=10):
    """Of the three maps of 8 images of 5 x 6."""
    rng, of_image = np.random.default_rng(2), jnp.linspace(-1, 2, 8)[:, None, None, None]
    rows, columns = -(-5 // strides), -(-6 // strides)
    sizes = ((5, 6, width), (5, 6, 3), (rows, columns, 3))
    return Maps(*(jnp.asarray(rng.normal(0.2, 1, (8, *size))) * of_image for size in sizes))


def derivatives_of(module, x, d_y):
    """Maps, running averages, and the gradients of parameters and x."""
    graphdef, params, statistics = nnx.split(module, nnx.Param, ...)

    def run(params, x):
        own = nnx.merge(graphdef, params, statistics, copy=True)
        return own(x), nnx.state(own, nnx.BatchStat)

    y, vjp, moved = jax.vjp(run, params, x, has_aux=True)
    return y, moved, *vjp(jax.tree.map(lambda d, y: d.astype(y.dtype), d_y, y))


def assert_close(ours, theirs, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = np.max(np.abs(b)) + 1e-3
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance)


def check_statistics_over_devices(derivatives, x, d_y):
    """`derivatives(x, d_y, **options)` of 8 images are the same on four devices with 2 each."""
    y, moved, d_params, d_x = derivatives(x, d_y)
    split = jax.tree.map(lambda array: array.reshape(4, 2, *array.shape[1:]), (x, d_y))
    shared = jax.pmap(
        lambda x, d_y: derivatives(x, d_y, axis_name="batch"), axis_name="batch"
    )(*split)  # fmt: skip
    assert_close(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), shared[0]), y)
    assert_close(jax.tree.map(lambda leaf: leaf[3], shared[1]), moved)
    assert_close(jax.tree.map(lambda leaf: jnp.sum(leaf, 0), shared[2]), d_params)
    assert_close(shared[3].reshape(x.shape), d_x)


def check_shared_parameters(module, x, d_y):
    """In a `shard_map` that checks types, gradients of parameters are summed over the devices."""
    graphdef, params, statistics = nnx.split(module, nnx.Param, ...)

    def gradients(params, x, d_y):
        def loss(params):
            maps = nnx.merge(graphdef, params, statistics, copy=True)(x)
            return sum(jnp.sum(a * b) for a, b in zip(maps, d_y, strict=True))

        return jax.grad(loss)(params)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("batch",))
    specs = (jax.P(), jax.P("batch"), jax.P("batch"))
    on_four = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=jax.P()))
    assert_close(on_four(params, x, d_y), jax.jit(gradients)(params, x, d_y))

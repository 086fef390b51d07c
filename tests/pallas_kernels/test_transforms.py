"""Every implementation under transformations of JAX: shard_map, vmap, export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import local_relation
from pallas_kernels.spec import Spec
from pallas_kernels.tools.comparison import RESULTS, reference_results
from pallas_kernels.tools.shapes import Shape, make_cotangent, make_inputs
from tests.pallas_kernels.under_test import assert_close, each_implementation

SMALL = Shape("small", 6, 7, 6, Spec((3, 5), 4))


@pytest.mark.parametrize("implementation", [*each_implementation(interpreted=()), None])
def test_shard_map(implementation):
    """Two images on two devices; the prior is the same on both, so its gradient is a sum."""
    shape = Shape("sharded", 4, 5, 4, Spec((3, 3), 4), batch=2)
    inputs, d_out = make_inputs(shape), make_cotangent(shape)

    def results(*arrays):
        def run(*inputs):
            return local_relation(*inputs, **shape.options, implementation=implementation)

        out, vjp = jax.vjp(run, *arrays[:4])
        return out, *vjp(arrays[4])

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "batch")
    rows, whole = jax.P("batch"), jax.P()
    sharded = jax.shard_map(
        results,
        mesh=mesh,
        in_specs=(rows, rows, rows, whole, rows),
        out_specs=(rows, rows, rows, rows, whole),
    )
    got = jax.jit(sharded)(*inputs, d_out)
    want = reference_results(shape, inputs, d_out)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", [*each_implementation(), None])
def test_vmap(implementation):
    """Extra leading axes, one array shared, equal a loop; gradients too."""
    stacked = [
        jnp.stack(x) for x in zip(*(make_inputs(SMALL, seed=i) for i in (0, 1)), strict=True)
    ]
    prior = stacked[3][0]
    cotangent = make_cotangent(SMALL)

    @jax.jit
    def results(query, key, value):
        out, vjp = jax.vjp(
            functools.partial(local_relation, **SMALL.options, implementation=implementation),
            query,
            key,
            value,
            prior,
        )
        return out, *vjp(cotangent)

    got = jax.jit(jax.vmap(results))(*stacked[:3])
    for i in (0, 1):
        want = results(*(x[i] for x in stacked[:3]))
        for name, a, b in zip(RESULTS, got, want, strict=True):
            assert_close({name: np.asarray(a[i])}, {name: np.asarray(b)}, 1e-5)

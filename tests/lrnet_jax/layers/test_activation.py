"""The rectifier is that of JAX, and keeps its output alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.layers.activation import relu
from lrnet_jax.layers.kept import recomputed


def test_values_and_derivatives_are_those_of_jax():
    x = jnp.asarray([-np.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, np.inf], jnp.float32)
    tangent = jnp.arange(1.0, 8.0)
    for ours, jaxs in zip(
        (*jax.jvp(relu, (x,), (tangent,)), *jax.vjp(relu, x)[1](tangent)),
        (*jax.jvp(jax.nn.relu, (x,), (tangent,)), *jax.vjp(jax.nn.relu, x)[1](tangent)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, jaxs)
    assert np.isnan(relu(jnp.asarray(np.nan)))


def test_the_backward_pass_reads_the_output_and_not_the_input():
    def backward(x, tangent):
        y, vjp = jax.vjp(relu, x)
        return y, vjp(tangent)

    x = jnp.ones(3)
    jaxpr = jax.make_jaxpr(backward)(x, x)
    users = [eqn.primitive.name for eqn in jaxpr.eqns if jaxpr.jaxpr.invars[0] in eqn.invars]
    assert len(users) == 1


def test_layers_that_are_computed_again_keep_the_output():
    class Layer(nnx.Module):
        def __call__(self, x):
            return relu(2 * x)

    def backward(x):
        y, vjp = jax.vjp(functools.partial(recomputed(Layer.__call__), Layer()), x)
        return y, vjp(y)

    assert str(jax.make_jaxpr(backward)(jnp.ones(3))).count("= max ") == 1

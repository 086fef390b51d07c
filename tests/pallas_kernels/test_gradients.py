"""Gradients of every implementation: against differences, of some arguments alone, forward mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pallas_kernels import local_relation
from pallas_kernels.api import DIFFERENTIATED_BY_JAX
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import Shape, make_cotangent, make_inputs
from tests.pallas_kernels.under_test import (
    assert_close,
    each_implementation,
    run,
    skip_unsupported,
)

SMALL = Shape("small", 6, 7, 6, Spec((3, 5), 4))


def modes(implementation):
    return ["fwd", "rev"] if implementation in DIFFERENTIATED_BY_JAX else ["rev"]


@pytest.mark.parametrize("implementation", each_implementation())
@pytest.mark.parametrize(
    ("spec", "depth"),
    [
        (Spec((3, 3), 2), 1),
        (Spec((3, 1), 2, stride=2, similarity="absolute_difference", scale=0.7), 2),
        (Spec((1, 3), 3, dilation=2, similarity="multiplication", normalization="none"), 1),
    ],
    ids=["squared", "absolute", "multiplication"],
)
def test_numerical_gradients(spec, depth, implementation):
    shape = Shape("numerical", 4, 3, 3, spec, depth=depth)
    with jax.enable_x64(True):
        inputs = make_inputs(shape, "float64")
        skip_unsupported(implementation, inputs, shape.options)
        function = functools.partial(local_relation, **shape.options, implementation=implementation)
        check_grads(function, inputs, order=1, modes=modes(implementation), eps=1e-5)


@pytest.mark.parametrize("implementation", each_implementation())
def test_gradient_of_a_subset(implementation):
    inputs, cotangent = make_inputs(SMALL), make_cotangent(SMALL)
    want = run(SMALL, implementation, inputs, cotangent)

    def loss(*arrays):
        out = local_relation(*arrays, **SMALL.options, implementation=implementation)
        return jnp.vdot(out, cotangent)

    for i, name in ((2, "d_value"), (3, "d_prior")):
        got = jax.jit(jax.grad(loss, argnums=i))(*inputs)
        assert_close({name: np.asarray(got)}, {name: want[name]}, 1e-6)

"""In evaluation, products with what follows them in C++ change neither outputs nor derivatives."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax import normalized
from lrnet_jax.model_zoo import create_from_variant
from pallas_kernels.native import library
from pallas_kernels.platform_switch import without_switch
from tests.pallas_kernels.native.test_native import needs_library

SMALL = {"depths": (1, 1), "width": 6, "stage_channels": (16, 24), "stem_channels": 12}
SMALL |= {"kernel_size": 3, "stem_kernel_size": 3, "implementation": "reference"}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def block(**fields):
    """The first block of a small network in evaluation, as a function of its state and x."""
    variant = dataclasses.replace(lrnet_jax.get_variant("lrnet26"), **SMALL | fields)
    model = create_from_variant(variant, 5, nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model.stages[0][0])
    keys = iter(range(1000))
    state = jax.tree.map(lambda x: x + 0.2 * jnp.abs(normal(*x.shape, seed=next(keys))), state)
    return lambda state, x: nnx.merge(graph, state)(x), state, normal(2, 8, 9, 12)


def plain(function, *arguments):
    """Without the C++; a new function, because JAX keeps what it has traced."""
    with without_switch():
        return jax.jit(lambda *arrays: function(*arrays))(*arguments)


def close(found, expected):
    """To rounding of the largest: some gradients are zero but for it."""
    bound = 1e-6 * max(np.abs(b).max() for b in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=bound)


@needs_library
def test_a_block_has_the_same_output():
    run, state, x = block()
    compiled = jax.jit(run).lower(state, x).compile()
    # Of the branch and its shortcut; keys and queries are more.
    assert compiled.as_text().count('custom_call_target="lrnet_cpu_row_product"') >= 4
    close(compiled(state, x), plain(run, state, x))


@needs_library
def test_a_block_has_the_same_derivatives():
    run, state, x = block()
    tangents = jax.tree.map(lambda x: normal(*x.shape, seed=1), (state, x))
    cotangent = normal(*jax.eval_shape(run, state, x).shape, seed=2)

    def derivatives(state, x):
        y, tangent = jax.jvp(run, (state, x), tangents)
        return y, tangent, jax.vjp(run, state, x)[1](cotangent)

    close(jax.jit(derivatives)(state, x), plain(derivatives, state, x))


def operations(text):
    """The operations with their shapes. The shortcut may come before or after the branch."""
    lines = re.sub(r"%\w+|(?<=@)\w+| ?loc\(.*\)|^#loc.*", "", text, flags=re.MULTILINE)
    return collections.Counter(filter(None, lines.splitlines()))


@needs_library
@pytest.mark.parametrize("where", ["cuda", "export"])
def test_other_programs_stay_as_they_are(where, monkeypatch):
    run, state, x = block()

    def program():
        jitted = jax.jit(lambda *arrays: run(*arrays))
        if where == "export":
            return jax.export.export(jitted)(state, x).mlir_module()
        return jitted.trace(state, x).lower(lowering_platforms=("cuda",)).as_text()

    found = program()
    monkeypatch.setattr(normalized, "in_one_pass", lambda *arrays: False)
    assert "lrnet_cpu" not in found
    assert operations(found) == operations(program())


def test_without_the_library_plain_jax_runs(monkeypatch):
    run, state, x = block()
    monkeypatch.setattr(library, "obstacle", lambda: "not built")
    text = jax.jit(lambda *arrays: run(*arrays)).lower(state, x).as_text()
    assert "lrnet_cpu_row_product" not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_in_bfloat16_stay_with_xla(dtype):
    run, state, x = block(dtype="bfloat16")
    text = jax.jit(lambda *arrays: run(*arrays)).lower(state, x.astype(dtype)).as_text()
    assert "lrnet_cpu_row_product" not in text

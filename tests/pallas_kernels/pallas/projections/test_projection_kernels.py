"""The kernels between a normalisation and a local relation: interpreted, compiled and executed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import pallas
from pallas_kernels.pallas import projections
from pallas_kernels.pallas.stem.arrays import map_shapes
from pallas_kernels.tools.cross_compilation import GPUS, kernels, missing
from tests.pallas_kernels.pallas.projections.projection_problems import (
    PROJECTIONS,
    ProjectionProblem,
    faults,
)

needs_compiler = pytest.mark.skipif(missing() is not None, reason=str(missing()))
# At the first local relation of res3 in LR-Net-50: 200 channels, 25 keys and 25 queries.
NETWORK = ProjectionProblem(128, 56, 56, 200, 25, 25, 1, 2)


@functools.cache
def results(name, dtype="bfloat16"):
    problem = PROJECTIONS[name]
    fast = {"xla_backend_optimization_level": 0}
    function = functools.partial(problem.run, True)
    return jax.jit(function, compiler_options=fast)(*problem.arrays(dtype))


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bfloat16") for name in PROJECTIONS), ("odd", "float16")]
)
def test_interpreted_kernels_against_float64(name, dtype):
    assert not faults(PROJECTIONS[name], jnp.dtype(dtype), *results(name, dtype))


def test_a_wrong_result_is_a_fault():
    """The comparison of this file and of the emulation."""
    problem = PROJECTIONS["odd"]
    maps, sums, d_x = results("odd")
    wrong = sums._replace(products=sums.products.at[1, 3].mul(1.001))
    [line] = faults(problem, jnp.bfloat16, maps, wrong, d_x)
    assert line.startswith("sums.products: error")
    assert faults(problem, jnp.bfloat16, maps, sums, d_x.at[0, 1, 2, 3].add(0.1))


def test_vmap():
    """A stack of two problems, as an ensemble of networks has it."""
    problem = PROJECTIONS["odd"]
    stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), problem.arrays(jnp.bfloat16))
    both = jax.jit(jax.vmap(functools.partial(problem.run, True)))(*stacked)
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(results("odd")), strict=True):
        np.testing.assert_allclose(a[0].astype(jnp.float32), b.astype(jnp.float32), rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "dtype", "part"),
    [
        ({"channels": 264}, "bfloat16", "channels"),
        ({"keys": 40}, "bfloat16", "columns"),
        ({"images": 4096}, "bfloat16", "elements"),
        ({}, "float32", "float32"),
    ],
)
def test_unsupported(change, dtype, part):
    assert projections.unsupported(abstract(NETWORK, "bfloat16")[0]) is None
    other = dataclasses.replace(NETWORK, **change)
    assert part in projections.unsupported(abstract(other, dtype)[0])


def test_unsupported_without_the_backend(monkeypatch):
    monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")
    reason = projections.unsupported(abstract(NETWORK, "bfloat16")[0])
    assert reason == "JAX has no Pallas-Triton"


def abstract(problem, dtype):
    def shape(*sizes, dtype="float32"):
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))

    parameter = shape(problem.groups, problem.channels)
    inputs = projections.Inputs(
        shape(problem.images, problem.height, problem.width, problem.channels, dtype=dtype),
        parameter,
        parameter,
        shape(problem.channels, problem.keys),
        shape(problem.channels, problem.queries),
    )
    return inputs, map_shapes(inputs, problem.stride), parameter, parameter


@needs_compiler
@pytest.mark.parametrize(
    ("gpu", "change"),
    [
        *((gpu, {}) for gpu in GPUS),
        # Programs that hold most: whole channels and columns; groups of images.
        ("a100", {"channels": 256, "keys": 32, "queries": 32, "stride": 1, "groups": 2}),
        ("h100", {"channels": 104, "keys": 13, "queries": 13, "stride": 1}),
    ],
)
def test_no_spills(gpu, change):
    problem = dataclasses.replace(NETWORK, **change)
    function = functools.partial(problem.run, False)
    arrays = abstract(problem, "bfloat16")
    assert projections.unsupported(arrays[0]) is None
    found = kernels(GPUS[gpu], function, *arrays)
    ours = [kernel for kernel in found if kernel.name.startswith("projections_")]
    assert len(ours) == 3
    assert [kernel.spills for kernel in ours] == [0, 0, 0]
    assert all(kernel.resident_warps(GPUS[gpu]) >= 8 for kernel in ours)

"""The XLA path alone: blocks of rows, memory, lowering for several platforms."""

import functools

import jax
import numpy as np

from pallas_kernels import local_relation
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import SHAPES, Shape, make_cotangent, make_inputs
from pallas_kernels.tools.timing import prepare
from tests.pallas_kernels.under_test import assert_close, compiled, run, with_gradients

SMALL = Shape("small", 6, 7, 6, Spec((3, 5), 4))


def test_many_blocks():
    """Images cut into blocks of rows, the last one ragged, with stride and dilation."""
    shape = Shape("blocks", 95, 181, 130, Spec((3, 3), 8, stride=2, dilation=2))
    # Sums of at most some thousand normal numbers and products of two.
    with jax.enable_x64(True):
        inputs, cotangent = make_inputs(shape, "float64"), make_cotangent(shape, "float64")
        want = run(shape, "reference", inputs, cotangent)
        assert_close(run(shape, "xla", inputs, cotangent), want, 1e-12)


def temporary_bytes(shape, implementation):
    arguments = (make_cotangent(shape), *make_inputs(shape))
    return prepare(with_gradients(shape, implementation), *arguments).temp_bytes


def test_memory_is_a_tenth_of_the_reference():
    shape = SHAPES["lrnet26/res2"]
    assert temporary_bytes(shape, "xla") <= temporary_bytes(shape, "reference") / 10


def test_memory_does_not_grow_with_the_batch():
    """Beyond what the backward pass is handed: two numbers per pixel and group."""
    shape = Shape("batches", 14, 14, 404, Spec((3, 3), 8))
    one, five = (temporary_bytes(shape.with_batch(batch), "xla") for batch in (1, 5))
    normalizer = 2 * 4 * np.prod(shape.query)
    assert five - one <= 1.5 * 4 * normalizer


def test_export_for_several_platforms():
    """One program; the CPU's part is run, the others are lowered only."""
    run = compiled(SMALL, "xla")
    arguments = (make_cotangent(SMALL), *make_inputs(SMALL))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(*arguments)
    got, want = exported.call(*arguments), run(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_export_for_any_batch_size():
    function = jax.jit(functools.partial(local_relation, **SMALL.options, implementation="xla"))
    (batch,) = jax.export.symbolic_shape("batch", constraints=["batch >= 1"])
    query, key, value, prior = make_inputs(SMALL)
    abstract = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in (query, key, value)]
    exported = jax.export.export(function)(*abstract, prior)
    for size in (1, 3):
        arguments = [*(np.repeat(x, size, 0) for x in (query, key, value)), prior]
        np.testing.assert_allclose(exported.call(*arguments), function(*arguments), atol=1e-6)


def test_isolation_is_for_cpu_only():
    """The attribute that keeps stages apart was tried on CPUs alone."""
    function = functools.partial(local_relation, **SMALL.options, implementation="xla")
    for platform, isolated in (("cpu", True), ("cuda", False), ("tpu", False)):
        text = jax.export.export(jax.jit(function), platforms=(platform,))(
            *make_inputs(SMALL)
        ).mlir_module()
        assert ("inlineable" in text) == isolated, platform

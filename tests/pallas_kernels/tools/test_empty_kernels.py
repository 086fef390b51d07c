"""A program with empty kernels is the program with whole kernels, but for their bodies."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import local_relation
from pallas_kernels.tools.cross_compilation import GPUS, compile_for, missing
from pallas_kernels.tools.empty_kernels import empty_kernels

needs_compiler = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def gradients(query, key, value, prior):
    def loss(*inputs):
        out = local_relation(*inputs, kernel_size=3, channels_per_group=8)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    return jax.grad(loss, range(4))(query, key, value, prior)


def arrays(batch=32, size=14, groups=2):
    pixels = (batch, size, size, groups, 1)
    vectors = jax.ShapeDtypeStruct(pixels, jnp.bfloat16)
    values = jax.ShapeDtypeStruct((*pixels[:3], 8 * groups), jnp.bfloat16)
    return vectors, vectors, values, jax.ShapeDtypeStruct((groups, 3, 3), jnp.float32)


@needs_compiler
def test_kernels_of_the_same_arrays_and_so_the_same_memory():
    whole = compile_for(GPUS["h100"], gradients, *arrays())
    with empty_kernels():
        empty = compile_for(GPUS["h100"], gradients, *arrays())
    after = compile_for(GPUS["h100"], gradients, *arrays())
    plans = [program.memory_analysis() for program in (whole, empty, after)]
    assert plans[0].temp_size_in_bytes > 32 * 14 * 14 * 16 * 2
    assert plans[0].temp_size_in_bytes == plans[1].temp_size_in_bytes
    calls = [kernel_calls(program) for program in (whole, empty, after)]
    assert [len(found) for found in calls] == [3, 3, 3]
    # Without a body the text of a kernel is short. It holds lines of source, which depend on what
    # was traced before, so that the texts with bodies are not equal.
    sizes = [len("".join(found)) for found in calls]
    assert 2 * sizes[1] < sizes[0]
    assert 2 * sizes[1] < sizes[2]


def kernel_calls(program):
    """The calls of kernels in the text of a program."""
    return [line for line in program.as_text().splitlines() if '"__gpu$xla.gpu.triton"' in line]

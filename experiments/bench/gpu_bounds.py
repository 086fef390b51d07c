"""What the hardware allows a local relation: memory traffic and arithmetic at measured rates."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.kept_results import Result
from pallas_kernels.tools.shapes import Shape
from pallas_kernels.tools.timing import interleave

CHAIN = 512  # multiply-adds of one element: far more than what its load and store take


def measure(*, small: bool) -> Result:
    """The rates of this device: bytes a second of a copy, float32 multiply-adds a second.

    Args:
      small: whether arrays of 1 MiB are enough, for a trial.
    """
    copied = jnp.zeros(2**18 if small else 2**28, jnp.float32)
    chained = jnp.zeros(2**18 if small else 2**24, jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(copied).compile()

    @jax.jit
    def chain(x: jax.Array, factor: jax.Array) -> jax.Array:
        for _ in range(CHAIN):
            x = x * factor + factor
        return x

    factor = jnp.float32(0.5)
    compiled = chain.lower(chained, factor).compile()
    times = interleave(
        {"copy": lambda: copy(copied), "chain": lambda: compiled(chained, factor)}, rounds=5
    )
    bandwidth = 2 * copied.nbytes / times["copy"].least
    rate = CHAIN * chained.size / times["chain"].least
    return {
        "bytes_per_second": bandwidth,
        "multiply_adds_per_second": rate,
        "summary": f"{bandwidth / 1e9:.0f} GB/s, {rate / 1e12:.2f} T multiply-adds/s",
    }


def work(shape: Shape, dtype: Any) -> dict[str, dict[str, float]]:
    """The least that any implementation must do, {pass: {"bytes", "multiply_adds"}}.

    Each array is read or written once. For each output pixel, tap and group, the forward pass takes
    a similarity (3 operations), an exponential (1) and M multiply-adds. The backward pass takes the
    similarity and the exponential again, M for the gradient of the weight, M for that of the value,
    and 5 for those of query, key and prior.
    """
    width = jnp.dtype(dtype).itemsize
    b, height, out_width, groups, depth = shape.query
    pairs = b * height * out_width * groups * shape.spec.taps
    sizes = [
        math.prod(shape.query),
        math.prod(shape.key),
        math.prod(shape.value),
        math.prod(shape.out),
    ]
    inputs, out = width * sum(sizes[:3]), width * sizes[3]
    normalizer = 8 * b * height * out_width * groups  # two float32 numbers
    members = shape.spec.channels_per_group
    forward = {
        "bytes": float(inputs + out + normalizer),
        "multiply_adds": float(pairs * (3 * depth + 1 + members)),
    }
    backward_bytes = 2 * inputs + 2 * out + normalizer
    backward_work = pairs * (3 * depth + 1 + 2 * members + 3 * depth + 2)
    return {
        "forward": forward,
        "forward_backward": {
            "bytes": forward["bytes"] + backward_bytes,
            "multiply_adds": forward["multiply_adds"] + backward_work,
        },
    }


def bound_seconds(work: dict[str, float], hardware: Result) -> float:
    """The larger of the times of memory and arithmetic."""
    return max(
        work["bytes"] / hardware["bytes_per_second"],
        work["multiply_adds"] / hardware["multiply_adds_per_second"],
    )

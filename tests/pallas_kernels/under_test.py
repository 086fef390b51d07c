"""What the tests of the operator share: the implementations to test, results by name."""

import functools

import jax
import numpy as np
import pytest

from pallas_kernels import implementations, local_relation
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.tools.comparison import RESULTS

# Interpret mode compiles every problem for seconds to minutes, at the tiles that a GPU would take.
INTERPRETED = ("pallas_interpret",)


def each_implementation(*without, interpreted=INTERPRETED):
    """Every implementation of the table, as parameters of a test.

    One that this machine cannot run is skipped, for the reason that it reports.
    """
    parameters = []
    for name, module in IMPLEMENTATIONS.items():
        reason = module.unavailable()
        if reason:
            marks = [pytest.mark.skip(reason=reason)]
        else:
            marks = [pytest.mark.interpreted] if name in interpreted else []
        if name not in without:
            parameters.append(pytest.param(name, marks=marks))
    return parameters


def skip_unsupported(implementation, inputs, options):
    """Skips a test whose problem the implementation runs nowhere, for the reason that it reports.

    The default, None, runs every problem.
    """
    if implementation is not None:
        runs, reason = implementations(*inputs, **options)[implementation]
        if not runs:
            pytest.skip(reason)


def with_gradients(shape, implementation):
    """A function of cotangent and arrays that returns the output and all gradients."""
    function = functools.partial(local_relation, **shape.options, implementation=implementation)

    def results(cotangent, *arrays):
        out, vjp = jax.vjp(function, *arrays)
        return out, *vjp(cotangent)

    return results


@functools.cache
def compiled(shape, implementation):
    """`with_gradients` as one program: operation by operation it compiles ten times longer."""
    return jax.jit(with_gradients(shape, implementation))


def run(shape, implementation, arrays, cotangent):
    """Output and gradients, keyed by name, as float64 numpy arrays."""
    arrays = [array for array in arrays if array is not None]
    results = compiled(shape, implementation)(cotangent, *arrays)
    for result, like in zip(results, (arrays[2], *arrays), strict=True):
        assert result.dtype == like.dtype
    return {
        name: np.asarray(result, np.float64) for name, result in zip(RESULTS, results, strict=False)
    }


def assert_close(got, want, tolerance):
    """Errors are at most the tolerance times the largest result, or the tolerance itself."""
    assert got.keys() == want.keys()
    for name in got:
        assert np.isfinite(got[name]).all(), name
        error = np.abs(got[name] - want[name]).max()
        limit = tolerance * max(1, np.abs(want[name]).max())
        assert error <= limit, f"{name}: error {error:.3g} > {limit:.3g}"

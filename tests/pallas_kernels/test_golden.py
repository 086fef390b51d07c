"""Every implementation against the float64 golden cases, in float64 and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import NAMES, load

from pallas_kernels import local_relation
from tests.pallas_kernels.under_test import each_implementation, skip_unsupported


@pytest.mark.parametrize("implementation", [*each_implementation(), None])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_golden(name, dtype, implementation):
    case = load(name)

    @jax.jit
    def results(cotangent, *inputs):
        out, vjp = jax.vjp(
            lambda *x: local_relation(*x, **case.options, implementation=implementation), *inputs
        )
        return out, *vjp(cotangent)

    with jax.enable_x64(dtype == "float64"):
        cotangent, *inputs = (jnp.asarray(x, dtype) for x in (case.cotangent, *case.inputs))
        skip_unsupported(implementation, inputs, case.options)
        found = results(cotangent, *inputs)
    tol = case.tol64 if dtype == "float64" else case.tol32
    for got, (result, want) in zip(found, case.results.items(), strict=True):
        assert got.dtype == dtype
        got = np.asarray(got, np.float64)
        assert np.isfinite(got).all(), result
        if np.isnan(tol):  # float32 cannot represent the logits of this case
            continue
        error = np.abs(got - want).max()
        limit = tol * max(case.gross[result], np.abs(want).max())
        assert error <= limit, f"{result}: error {error:.3g} > {limit:.3g}"

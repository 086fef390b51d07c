"""The mends of jax-triton are still needed: what fails here says which one to remove."""

import inspect

import jax
import pytest

from pallas_kernels.jax_triton import stack

pytestmark = pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))


def test_an_old_version_has_no_options_of_the_backend():
    jax_triton = stack.load()
    if not stack.takes_out_shape(jax_triton):
        pytest.skip(f"jax-triton {jax_triton.__version__} has them")
    assert "backend_options" not in inspect.signature(jax_triton.triton_call).parameters, (
        "remove stack._pass_options_in_lowering"
    )


def test_the_rule_for_dead_code_takes_too_few_arguments():
    jax_triton = stack.load()
    if stack.takes_out_shape(jax_triton) or jax.__version_info__ < (0, 12):
        pytest.skip(f"JAX {jax.__version__} and jax-triton {jax_triton.__version__} agree")
    from jax_triton import triton_lib

    rule = triton_lib._triton_kernel_call_dce_rule
    assert len(inspect.signature(rule).parameters) == 2, "remove stack._mend_dead_code_rule"
    assert not stack.needs_dead_code_rule()  # mended

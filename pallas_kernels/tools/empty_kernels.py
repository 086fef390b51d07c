"""Kernels without bodies, for questions about the program around them.

Most of the time in which a whole training step compiles goes into the bodies of the kernels. What
XLA plans around a kernel follows from its operands and results alone. With empty bodies the memory
of a step is the same, and it compiles in seconds. The program must not be run.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax

from pallas_kernels.pallas import forward_kernel, key_kernel, query_kernel
from pallas_kernels.pallas.projections import forward_kernel as projections_forward
from pallas_kernels.pallas.projections import gradient_kernel, sums_kernel
from pallas_kernels.pallas.stem import backward_kernel as stem_backward
from pallas_kernels.pallas.stem import forward_kernel as stem_forward

_MODULES = (
    forward_kernel, query_kernel, key_kernel, stem_forward, stem_backward, projections_forward,
    sums_kernel, gradient_kernel,
)  # fmt: skip


@contextlib.contextmanager
def empty_kernels() -> Iterator[None]:
    """Gives the Pallas kernels that are lowered inside empty bodies, and all their arrays."""
    with contextlib.ExitStack() as stack:
        for module in _MODULES:
            stack.enter_context(mock.patch.object(module, "_kernel", _empty))
        # JAX keeps what it lowered, whole kernels before and empty ones after.
        jax.clear_caches()
        stack.callback(jax.clear_caches)
        yield


def _empty(*arguments: object) -> None:
    del arguments

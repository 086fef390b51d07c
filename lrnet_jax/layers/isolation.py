"""Functions whose result XLA computes once on a CPU, however many use it."""

import functools
from collections.abc import Callable

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from pallas_kernels.platform_switch import by_platform


@functools.cache
def computed_once(function: Callable[..., jax.Array], *static: object) -> Callable[..., jax.Array]:
    """`partial(function, *static)`, of arrays alone.

    XLA:CPU fuses elementwise functions into each of their users and computes them again there, and
    it drops optimisation barriers before it fuses. On a CPU the function is therefore a call that
    is not inlined. Elsewhere it is a plain function. It has no derivative rule: it belongs inside a
    custom_vjp or custom_jvp.
    """
    plain = functools.wraps(function)(functools.partial(function, *static))
    jitted = jax.jit(plain)

    def isolated(*arrays: jax.Array) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return jitted(*arrays)

    return by_platform(default=plain, cpu=isolated)

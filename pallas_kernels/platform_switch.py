"""Chooses a function when a program is lowered, by the platform it is lowered for.

Asking `jax.default_backend()` at trace time is wrong for a program that is traced here and
compiled for elsewhere (`jax.export`, an absent GPU). `lax.platform_dependent` chooses at lowering
time, but in a multi-platform export it lowers every branch for every platform, and a Pallas
kernel has no lowering for a CPU. A primitive with one lowering rule a platform has neither fault:
only the branch of the platform at hand is ever traced.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

Function = Callable[..., Sequence[jax.Array]]

_switch = Primitive("local_relation_platform_switch")
_switch.multiple_results = True


def by_platform(default: Function, **platforms: Function) -> Function:
    """A function that runs `platforms[platform]`, or `default` on a platform that has none.

    Args:
      default: takes arrays, returns a flat tuple of arrays. Tells the shapes of the result.
      **platforms: "cpu" or "cuda" to a function of the same signature and results. Functions are
        compared by identity when programs are cached: pass the same objects for the same work.

    Returns:
      A function of the same signature; works under jit, vmap, pmap, shard_map and jax.export.
      It has no derivative rule: it belongs inside a custom_vjp.
    """
    choices = tuple(sorted(platforms.items()))

    def call(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(_switch.bind(*arrays, default=default, choices=choices))

    return call


def _abstract(*avals: Any, default: Function, choices: Any) -> Any:
    del choices
    closed = jax.make_jaxpr(default)(*avals)
    return list(closed.out_avals)


def _evaluate(*arrays: Any, **params: Any) -> Any:
    return jax.jit(lambda *a: _switch.bind(*a, **params))(*arrays)


def _batch(arrays: Any, axes: Any, *, default: Function, choices: Any) -> Any:
    mapped = {name: jax.vmap(function, in_axes=axes) for name, function in choices}
    out = by_platform(jax.vmap(default, in_axes=axes), **mapped)(*arrays)
    return out, [0] * len(out)


def _lower(platform: str | None) -> Callable[..., Any]:
    def rule(ctx: Any, *arrays: Any, default: Function, choices: Any) -> Any:
        function = dict(choices).get(platform, default)
        if platform is not None:  # nested primitives see this platform alone
            module = ctx.module_context.replace(platforms=(platform,))
            ctx = ctx.replace(module_context=module, platforms=(platform,))
        return mlir.lower_fun(function, multiple_results=True)(ctx, *arrays)

    return rule


_switch.def_abstract_eval(_abstract)
_switch.def_impl(_evaluate)
batching.primitive_batchers[_switch] = _batch
mlir.register_lowering(_switch, _lower(None))
for _platform in ("cpu", "cuda"):
    mlir.register_lowering(_switch, _lower(_platform), platform=_platform)

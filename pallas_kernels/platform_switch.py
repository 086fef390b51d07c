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
    # shard_map types each array by the mesh axes along which devices may hold different values.
    # That is none of the function's business: a result may differ where any argument does.
    plain = [_plain(x) for x in avals]
    axes = _varying(avals)
    kind = avals[0].manual_axis_type.update(varying=axes) if axes else None
    results = jax.make_jaxpr(default)(*plain).out_avals
    return [x.update_manual_axis_type(kind) if kind else x for x in results]


def vary_alike(*arrays: Any) -> list[Any]:
    """Inside `jax.shard_map`: types arrays that are equal on all devices like those that differ.

    So a gradient rule sees one kind of array, and the gradient of what is equal is summed.
    """
    kinds = [None if x is None else jax.typeof(x) for x in arrays]
    axes = _varying([x for x in kinds if x is not None])
    out = []
    for x, kind in zip(arrays, kinds, strict=True):
        missing = axes - _varying([kind]) if kind is not None else None
        out.append(jax.lax.pcast(x, tuple(missing), to="varying") if missing else x)
    return out


def _plain(aval: Any) -> Any:
    return aval.update_manual_axis_type(type(aval.manual_axis_type)())


def _varying(avals: Sequence[Any]) -> frozenset[Any]:
    """Mesh axes of a `jax.shard_map` along which any of the arrays may differ."""
    return frozenset().union(*(x.manual_axis_type.varying for x in avals))


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
        ctx = ctx.replace(
            avals_in=[_plain(x) for x in ctx.avals_in], avals_out=[_plain(x) for x in ctx.avals_out]
        )
        return mlir.lower_fun(function, multiple_results=True)(ctx, *arrays)

    return rule


_switch.def_abstract_eval(_abstract)
_switch.def_impl(_evaluate)
batching.primitive_batchers[_switch] = _batch
mlir.register_lowering(_switch, _lower(None))
for _platform in ("cpu", "cuda"):
    mlir.register_lowering(_switch, _lower(_platform), platform=_platform)

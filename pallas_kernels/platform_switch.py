"""Chooses a function when a program is lowered, by the platform it is lowered for.

`jax.default_backend()` at trace time is the wrong answer for a program that is traced here and
compiled for elsewhere (`jax.export`, an absent GPU). `lax.platform_dependent` chooses when the
program is lowered, but a multi-platform export then lowers every branch for every platform, and a
Pallas kernel has no lowering for a CPU. A primitive with one lowering rule per platform has neither
fault: only the branch of the platform at hand is ever traced.

A primitive takes and returns arrays, not pytrees. So this is what happens to the query on its way
through the switch, and to the other arrays with it:

    by_platform(...)(inputs)   flattens Inputs(query, key, value, prior) to a list of arrays
    _switch.bind(*arrays)      is one equation of the traced program; _abstract says its shapes
    _lower(platform)           runs when the program is lowered, and picks the function
    _flattened(function)       packs Inputs again, calls the function, flattens its results
    by_platform(...)           packs the results as the function returned them
"""

import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir, partial_eval

# Takes and returns pytrees of arrays.
PyTreeFunction = Callable[..., Any]
# Takes arrays and returns a list of arrays.
FlatFunction = Callable[..., Sequence[jax.Array]]
Choices = tuple[tuple[str, FlatFunction], ...]
# The function that computes some of the results alone, by which of them are used.
Parts = Mapping[tuple[bool, ...], PyTreeFunction]
FlatParts = tuple[tuple[tuple[bool, ...], FlatFunction], ...]
Tree = TypeVar("Tree")

OLDEST_GPU = 8.0  # compute capability

_switch = Primitive("local_relation_platform_switch")
_switch.multiple_results = True


# The first compute capability that multiplies and adds two float32 in one instruction.
PAIRS_FROM = 10.0

_compiled_for: contextvars.ContextVar[float | None] = contextvars.ContextVar(
    "compiled_for", default=None
)
_plain_only = contextvars.ContextVar("plain_only", default=False)


@contextlib.contextmanager
def without_switch() -> Iterator[None]:
    """Within it a switch is its default, for converters that know the primitives of JAX alone.

    JAX does not know of this when it caches what it has traced: trace a function here that was not
    traced before.
    """
    token = _plain_only.set(True)
    try:
        yield
    finally:
        _plain_only.reset(token)


def switches_are_off() -> bool:
    """Whether this is within `without_switch`."""
    return _plain_only.get()


def current_platform() -> str:
    """The platform that JAX compiles for here, by the name that lowering uses ("cuda")."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def compute_capability() -> float | None:
    """The compute capability of the NVIDIA GPU that JAX computes on, such as 9.0; None without."""
    if current_platform() != "cuda":
        return None
    found = getattr(jax.devices()[0], "compute_capability", None)
    return None if found is None else float(found)


@contextlib.contextmanager
def compiling_for(capability: float) -> Iterator[None]:
    """Kernels are written for a GPU of a compute capability, such as 9.0. It need not be here.

    JAX does not know of this when it reuses what it has traced: trace a new function object here.
    """
    token = _compiled_for.set(capability)
    try:
        yield
    finally:
        _compiled_for.reset(token)


def target_capability() -> float | None:
    """The compute capability that kernels are written for; None if it is not known.

    It is that of `compiling_for`, else that of the GPU that JAX computes on.
    """
    chosen = _compiled_for.get()
    return compute_capability() if chosen is None else chosen


def multiplies_pairs() -> bool:
    """Whether kernels are written for a GPU that multiplies and adds pairs of float32."""
    return (target_capability() or 0.0) >= PAIRS_FROM


def gpu_obstacle() -> str | None:
    """Why compiled GPU kernels cannot run on this machine, with the mend; None if they can."""
    platform = current_platform()
    if platform != "cuda":
        return (
            f"JAX computes on {platform} here and the kernels need an NVIDIA GPU; use 'xla', or "
            "'pallas_interpret' to see them run slowly"
        )
    capability = compute_capability()
    if capability is None or capability < OLDEST_GPU:
        return (
            f"{jax.devices()[0].device_kind} has compute capability {capability} and the kernels "
            f"need {OLDEST_GPU} (Ampere); use 'xla'"
        )
    return None


def by_platform(
    default: PyTreeFunction,
    *,
    shapes: PyTreeFunction | None = None,
    not_exported: Sequence[str] = (),
    parts: Parts = types.MappingProxyType({}),
    **platforms: PyTreeFunction,
) -> PyTreeFunction:
    """A function that runs `platforms[platform]`, or `default` on a platform that has none.

    Args:
      default: takes and returns pytrees of arrays.
      shapes: returns any arrays of the shapes and dtypes of the results, in place of `default`,
        which is otherwise traced for them even where another function runs.
      not_exported: platforms whose function is for this machine alone. A program that is exported
        (`jax.export`) has the default there.
      parts: what computes some of the results alone, on all platforms, by which of the arrays it
        returns, in a list. A layer that is computed again for its gradient may need few of them.
      **platforms: "cpu" or "cuda" to a function of the same signature and results. JAX compares
        functions by identity when it caches programs: pass the same objects for the same work.

    Returns:
      A function of the same signature. It works under jit, vmap, pmap, shard_map and jax.export.
      It has no derivative rule: it belongs inside a custom_vjp.
    """
    like = shapes or default

    @functools.cache  # calls of one structure share the functions, and so the traced program
    def flattened(structure: Any) -> dict[str, Any]:
        choices = {name: _flattened(f, structure) for name, f in sorted(platforms.items())}
        alone = {used: _flattened(f, structure) for used, f in parts.items()}
        plain = _flattened(default, structure)
        return {
            "default": plain,
            "shapes": plain if shapes is None else _flattened(shapes, structure),
            "choices": tuple(choices.items()),
            "parts": tuple(alone.items()),
        }

    def call(*arguments: Any) -> Any:
        if _plain_only.get():
            return default(*arguments)
        arrays, structure = jax.tree.flatten(arguments)
        plain = jax.tree.map(lambda x: _plain(jax.typeof(x)), arguments)
        results = jax.tree.structure(jax.eval_shape(like, *plain))
        out = _switch.bind(*arrays, **flattened(structure), not_exported=tuple(not_exported))
        return jax.tree.unflatten(results, out)

    return call


def vary_alike(tree: Tree) -> Tree:
    """Inside `jax.shard_map`: types arrays that are equal on all devices like those that differ.

    So a gradient rule gets one kind of array, and the gradient of an equal array is summed.
    """
    axes = _varying([jax.typeof(x) for x in jax.tree.leaves(tree)])

    def vary(x: jax.Array) -> jax.Array:
        missing = axes - _varying([jax.typeof(x)])
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)


def _flattened(function: PyTreeFunction, structure: Any) -> FlatFunction:
    """The function with the leaves of its arguments and results."""

    def flat(*arrays: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, arrays)))

    return flat


def _abstract(*avals: Any, shapes: FlatFunction, **others: Any) -> Any:
    del others
    # shard_map types each array by the mesh axes along which devices may hold different values.
    # The function does not see these types. A result may differ where any argument does.
    axes = _varying(avals)
    kind = avals[0].manual_axis_type.update(varying=axes) if axes else None
    results = jax.make_jaxpr(shapes)(*(_plain(x) for x in avals)).out_avals
    return [_on_mesh(x, avals[0]).update_manual_axis_type(kind) if kind else x for x in results]


def _on_mesh(aval: Any, like: Any) -> Any:
    """The aval with the mesh of another one; jax-triton's results have none."""
    if not aval.sharding.mesh.empty:
        return aval
    spec = jax.P(*(None,) * aval.ndim)
    return aval.update(sharding=jax.sharding.NamedSharding(like.sharding.mesh, spec))


def _plain(aval: Any) -> Any:
    return aval.update_manual_axis_type(type(aval.manual_axis_type)())


def _varying(avals: Sequence[Any]) -> frozenset[Any]:
    """Mesh axes of a `jax.shard_map` along which any of the arrays may differ."""
    return frozenset().union(*(x.manual_axis_type.varying for x in avals))


def _evaluate(*arrays: Any, **params: Any) -> Any:
    return jax.jit(lambda *a: _switch.bind(*a, **params))(*arrays)


def _batch(
    arrays: Any,
    axes: Any,
    *,
    default: FlatFunction,
    shapes: FlatFunction,
    choices: Choices,
    not_exported: tuple[str, ...],
    parts: FlatParts,
) -> Any:
    mapped = functools.partial(jax.vmap, in_axes=axes)
    out = _switch.bind(
        *arrays,
        default=mapped(default),
        shapes=mapped(shapes),
        choices=tuple((name, mapped(function)) for name, function in choices),
        not_exported=not_exported,
        parts=tuple((used, mapped(function)) for used, function in parts),
    )
    return out, [0] * len(out)


def _used_alone(used: Sequence[bool], *others: Any) -> Any:
    """The rule that drops results that nobody uses: which arguments are left, and the equation."""
    equation = others[-1]  # JAX 0.12 says before it which arguments are used
    function = dict(equation.params["parts"]).get(tuple(used))
    if not any(used):
        return [False] * len(equation.invars), None
    if function is not None:
        outputs = [output for output, needed in zip(equation.outvars, used, strict=True) if needed]
        options = {"choices": (), "not_exported": (), "parts": ()}
        params = {"default": function, "shapes": function, **options}
        equation = equation.replace(outvars=outputs, params=params)
    return [True] * len(equation.invars), equation


def _lower(platform: str | None) -> Callable[..., Any]:
    def rule(
        ctx: Any,
        *arrays: Any,
        default: FlatFunction,
        shapes: FlatFunction,
        choices: Choices,
        not_exported: tuple[str, ...],
        parts: FlatParts,
    ) -> Any:
        del shapes, parts
        function = default
        if platform is not None:  # nested primitives see this platform alone
            exports = ctx.module_context.lowering_parameters.for_export
            if not (exports and platform in not_exported):
                function = dict(choices).get(platform, default)
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
partial_eval.dce_rules[_switch] = _used_alone
mlir.register_lowering(_switch, _lower(None))
for _platform in ("cpu", "cuda"):
    mlir.register_lowering(_switch, _lower(_platform), platform=_platform)

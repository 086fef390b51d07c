"""The local relation operator: the one public function. Read this file first.

For every output pixel p and group g (Eqns. 1 and 2 of "Local Relation Networks for Image
Recognition", Hu et al., ICCV 2019):

    out[p, c]  = sum over taps t of  w[p, t, g] * value[p + offset(t), c],     g = c // M
    w[p, :, g] = softmax over t of ( scale * Phi(query[p, g], key[p + offset(t), g]) + prior[g, t] )

Taps outside the image are left out of the softmax and contribute nothing.

`IMPLEMENTATIONS` is the table of implementations. Each is a module of the name that
`implementation=` takes, with the face that `spec.Implementation` describes. All of them compute
similarity, softmax and sums in float32 whatever the input dtype is (in float64 if an input is
float64). To add one, add its module and a row; the tests run over the table.

This is the path of a query from a call to a kernel:

    local_relation                 checks the arguments and packs them into Spec and Inputs
    _choose                        names an implementation for each platform
    _run                           jit: equal calls share one traced program
    _with_own_gradient             custom_vjp: saves Residuals for the backward pass
    _switched                      the platform switch: flattens Inputs, and chooses the function
                                   for the platform when the program is lowered
    IMPLEMENTATIONS[name].forward  runs with the Inputs packed again, for example
                                   pallas.forward_kernel.forward -> pallas_call -> _kernel
"""

import functools
from typing import Literal, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import jax_triton, native, pallas, pallas_interpret, reference, xla
from pallas_kernels.platform_switch import (
    PAIRS_FROM,
    PyTreeFunction,
    by_platform,
    compute_capability,
    current_platform,
    target_capability,
    vary_alike,
)
from pallas_kernels.spec import (
    Implementation,
    Inputs,
    Normalization,
    Residuals,
    Similarity,
    Spec,
    backward_shapes,
    forward_shapes,
)
from pallas_kernels.validation import check_inputs, make_spec

IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": reference,
    "xla": xla,
    "native": native,
    "pallas": pallas,
    "jax_triton": jax_triton,
    "pallas_interpret": pallas_interpret,
}

# What `implementation=None` runs: on each platform the first of these that supports the problem,
# and the default everywhere else.
PREFERRED = {"cpu": ("native",), "cuda": ("pallas", "jax_triton")}
DEFAULT = "xla"

# The name of what the backward pass needs of the forward pass, for policies of `jax.checkpoint`.
RESIDUALS_NAME = "local_relation"

# The order on a GPU that multiplies and adds pairs of float32: jax_triton then issues fewer
# instructions and spills no register (docs/decisions.md).
PREFERRED_WITH_PAIRS = ("jax_triton", "pallas")
WHY_PAIRS = f"where jax_triton comes first (compute capability {PAIRS_FROM} or more)"

# An exported program (`jax.export`) must run where this package is not installed. Where it would
# hold one of these, it holds the default.
NOT_EXPORTED = frozenset({"native"})

# JAX differentiates these itself, so that forward mode works too. The others run inside a
# custom_vjp with their own backward pass.
DIFFERENTIATED_BY_JAX = frozenset({"reference"})


class Support(NamedTuple):
    """Whether an implementation can run a problem on this machine, and why or why not."""

    runs: bool
    reason: str


class Choice(NamedTuple):
    """The implementations that one call runs, by name.

    Attributes:
      default: runs on a platform that is not among the others.
      by_platform: pairs of a platform and the implementation that runs there.
      capability: of the GPU that kernels are written for, if it is known; JAX shares what it has
        traced for equal choices.
    """

    default: str
    by_platform: tuple[tuple[str, str], ...] = ()
    capability: float | None = None


def local_relation(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None = None,
    *,
    kernel_size: int | tuple[int, int],
    channels_per_group: int,
    stride: int = 1,
    dilation: int = 1,
    similarity: Similarity = "squared_difference",
    scale: float = 1.0,
    normalization: Normalization = "softmax",
    implementation: str | None = None,
) -> jax.Array:
    """Aggregates each pixel's neighbours with weights composed from query, key and prior.

    It is differentiable in all four arrays (forward mode only for "reference"), and works under
    jit, grad, vmap, pmap, shard_map, remat and jax.export.

    Args:
      query: (B, Ho, Wo, G, D) floating point, G = ceil(C / channels_per_group), D >= 1.
      key: (B, H, W, G, D).
      value: (B, H, W, C).
      prior: (G, Kh, Kw) geometric prior added to the logits, or None.
      kernel_size: odd K, or (Kh, Kw), both odd. May exceed the image.
      channels_per_group: M >= 1, how many channels share one weight. Need not divide C.
      stride: s >= 1; Ho = (H - 1) // s + 1, output (i, j) is centred on input (i * s, j * s).
      dilation: distance between taps in input pixels, >= 1.
      similarity: "squared_difference" -(q-k)^2 (Eqn. 3), "absolute_difference" -|q-k| (Eqn. 4) or
        "multiplication" q*k (Eqn. 5), each summed over D.
      scale: finite number multiplying Phi, not the prior.
      normalization: "softmax" over the taps, or "none": the logit itself is the weight.
      implementation: a name of `IMPLEMENTATIONS`, or None. None works everywhere and is decided
        when the program is lowered: native on a CPU where it is built, for a GPU the first of
        pallas and jax_triton that runs it, xla otherwise and in programs that are exported for
        CPUs. A named one that cannot run here raises an error with the reason.

    Returns:
      (B, Ho, Wo, C) in value.dtype.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: an argument has a wrong value or shape, or the implementation cannot run.

    Source: Section 3 and Eqns. 1 to 5 of the paper.
    """
    spec = make_spec(
        kernel_size, channels_per_group, stride, dilation, similarity, scale, normalization
    )
    inputs = Inputs(query, key, value, prior)
    check_inputs(spec, inputs)
    return _run(spec, _choose(spec, inputs, implementation), inputs)


def implementations(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None = None,
    *,
    kernel_size: int | tuple[int, int],
    channels_per_group: int,
    stride: int = 1,
    dilation: int = 1,
    similarity: Similarity = "squared_difference",
    scale: float = 1.0,
    normalization: Normalization = "softmax",
) -> dict[str, Support]:
    """Reports for every implementation whether it can run this problem here, and the reason.

    It takes the arguments of `local_relation`, where arrays may be `jax.ShapeDtypeStruct`s, and
    raises the same errors.

    Returns:
      Name to `Support(runs, reason)`. One reason says that it is the default here.
    """
    spec = make_spec(
        kernel_size, channels_per_group, stride, dilation, similarity, scale, normalization
    )
    inputs = Inputs(query, key, value, prior)
    check_inputs(spec, inputs)
    found = {name: _support(name, spec, inputs) for name in IMPLEMENTATIONS}
    platform = current_platform()
    default = dict(_choose(spec, inputs, None).by_platform).get(platform, DEFAULT)
    why = f", {WHY_PAIRS}" if preferred(platform) == PREFERRED_WITH_PAIRS else ""
    found[default] = Support(True, f"{found[default].reason}; the default here{why}")
    return found


def _support(name: str, spec: Spec, inputs: Inputs) -> Support:
    module = IMPLEMENTATIONS[name]
    # Without a GPU, it says so before it asks for packages that only a GPU needs.
    obstacle = module.unavailable() or module.unsupported(spec, inputs)
    return Support(obstacle is None, obstacle or module.DESCRIPTION)


def _choose(spec: Spec, inputs: Inputs, implementation: str | None) -> Choice:
    """The named implementation, or the preferred one of each platform."""
    if implementation is None:
        found = {platform: _preferred(platform, spec, inputs) for platform in PREFERRED}
        by_platform = tuple((k, name) for k, name in found.items() if name is not None)
        return Choice(DEFAULT, by_platform, target_capability())
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}; "
            f"got {implementation!r}"
        )
    runs, reason = _support(implementation, spec, inputs)
    if not runs:
        raise ValueError(f"implementation {implementation!r} cannot run: {reason}")
    return Choice(implementation, capability=target_capability())


def preferred(platform: str) -> tuple[str, ...]:
    """What `implementation=None` runs on a platform: the first one that can."""
    if platform == "cuda" and (compute_capability() or 0.0) >= PAIRS_FROM:
        return PREFERRED_WITH_PAIRS
    return PREFERRED.get(platform, ())


def _preferred(platform: str, spec: Spec, inputs: Inputs) -> str | None:
    """The first preferred implementation that can run on a platform."""
    # A program for GPUs may be compiled for another machine. A program for CPUs runs here: it is
    # either not exported, or has the default.
    here = platform in ("cpu", current_platform())
    for name in preferred(platform):
        module = IMPLEMENTATIONS[name]
        if module.unsupported(spec, inputs) is None and not (here and module.unavailable()):
            return name
    return None


# The static arguments make one compiled function per problem. Calls outside jit are fast too, and
# inside jit equal layers share one traced and lowered function.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(spec: Spec, choice: Choice, inputs: Inputs) -> jax.Array:
    if choice.default in DIFFERENTIATED_BY_JAX:
        return IMPLEMENTATIONS[choice.default].forward(spec, inputs)[0]
    return _with_own_gradient(spec, choice, vary_alike(inputs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_own_gradient(spec: Spec, choice: Choice, inputs: Inputs) -> jax.Array:
    return _forward(spec, choice, inputs)[0]


def _forward(spec: Spec, choice: Choice, inputs: Inputs) -> tuple[jax.Array, Residuals]:
    # A name for policies of jax.checkpoint: the forward pass need not run again for these.
    results = _switched("forward", spec, choice)(inputs)
    out, normalizer = jax.tree.map(lambda x: checkpoint_name(x, RESIDUALS_NAME), results)
    return out, Residuals(inputs, out, normalizer)


def _backward(spec: Spec, choice: Choice, residuals: Residuals, d_out: jax.Array) -> tuple[Inputs]:
    return (_switched("backward", spec, choice)(residuals, d_out),)


_with_own_gradient.defvjp(_forward, _backward)

Pass = Literal["forward", "backward"]

# Otherwise `xla` would be traced for the shapes of results in every program with `native`: that is
# a third of the time that the tracing of a training step takes.
SHAPES: dict[Pass, PyTreeFunction] = {"forward": forward_shapes, "backward": backward_shapes}


# Both functions are cached because JAX shares traced programs by the identity of the function. So
# all layers of one shape are traced and lowered once.
@functools.cache
def _switched(direction: Pass, spec: Spec, choice: Choice) -> PyTreeFunction:
    """One pass of the chosen implementations, behind the platform switch."""
    platforms = {
        platform: _jitted(direction, spec, name, choice.capability)
        for platform, name in choice.by_platform
    }
    not_exported = [platform for platform, name in choice.by_platform if name in NOT_EXPORTED]
    default = _jitted(direction, spec, choice.default, choice.capability)
    shapes = functools.partial(SHAPES[direction], spec)
    return by_platform(default, shapes=shapes, not_exported=not_exported, parts={}, **platforms)


@functools.cache
def _jitted(direction: Pass, spec: Spec, name: str, capability: float | None) -> PyTreeFunction:
    del capability  # another function for another GPU
    return jax.jit(functools.partial(getattr(IMPLEMENTATIONS[name], direction), spec))

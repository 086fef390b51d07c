"""jax-triton and Triton as they are installed: the one place that knows their versions.

`COMPILED` has the combinations whose kernels were compiled and tested. Another one may work; if it
does not, the error says what it is. No package is imported before a kernel is lowered.
"""

import contextlib
import contextvars
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from pallas_kernels.jax_triton.plan import Plan
from pallas_kernels.platform_switch import target_capability

INSTALL = "python -m pip install -e '.[cuda12]' (or cuda13) in the checkout"
KERNELS = "pallas_kernels.jax_triton.kernels"
PACKAGES = ("triton", "jax_triton")
# jax-triton, Triton and JAX. For Python 3.11 there is no JAX after 0.10.
COMPILED = (("0.3.1", "3.9", "0.10"), ("0.4.1", "3.9", "0.11"), ("0.4.1", "3.9", "0.12"))
# One of them tells jax-triton how to describe a call to XLA.
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# Code for the oldest GPU that the kernels support runs on all newer ones too.
OLDEST = 80
# PTX versions that every assembler since CUDA 12.0 (sm_100: 12.9) reads. Triton would write its
# newest, which the assembler of another CUDA refuses.
PTX_VERSION = {"old": 80, "blackwell": 88}

# Triton's names of dtypes.
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32"}


@functools.cache
def missing() -> str | None:
    """Which package is not installed, with the command that installs it; None if all are."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            return f"the package {name.replace('_', '-')} is not installed; {INSTALL}, or use 'xla'"
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        return f"JAX has no CUDA plugin here; {INSTALL}, or use 'xla'"
    return None


@functools.cache
def untested() -> str | None:
    """Says in a line that this combination of versions was never compiled; None if it was."""
    try:
        here = [importlib.metadata.version(name) for name in ("jax-triton", "triton", "jax")]
    except importlib.metadata.PackageNotFoundError:
        return None  # `missing` says so
    for known in COMPILED:
        if all(f"{x}.".startswith(f"{y}.") for x, y in zip(here, known, strict=True)):
            return None
    combinations = ", or ".join("{}, {} and {}".format(*known) for known in COMPILED)
    return (
        f"jax-triton {here[0]}, triton {here[1]} and jax {here[2]} were never compiled together; "
        f"known to work: {combinations}"
    )


def capability() -> int:
    """The compute capability to compile for, 90 for 9.0; the oldest supported one if unknown."""
    found = target_capability()
    return OLDEST if found is None else round(10 * found)


@functools.cache
def load() -> Any:
    """The module jax_triton, with what its versions need."""
    before = os.environ.get("TRITON_CACHE_DIR")
    import jax_triton

    # Importing it changes this variable, for other users of Triton in the process too.
    os.environ.pop("TRITON_CACHE_DIR", None)
    if before is not None:
        os.environ["TRITON_CACHE_DIR"] = before
    if takes_out_shape(jax_triton):
        _pass_options_in_lowering()
    elif needs_dead_code_rule():
        _mend_dead_code_rule()
    return jax_triton


def takes_out_shape(jax_triton: Any) -> bool:
    """Whether this is jax-triton 0.3, which has no option for the version of PTX."""
    return "out_shape" in inspect.signature(jax_triton.triton_call).parameters


def ptx_version(compute_capability: int) -> int:
    """The version of PTX to write, 80 for 8.0."""
    return PTX_VERSION["blackwell" if compute_capability >= 100 else "old"]


def backend_options(compute_capability: int, plan: Plan) -> dict[str, Any]:
    """What Triton's compiler is told of the GPU and its assembler."""
    return {
        "ptx_version": ptx_version(compute_capability),
        "maxnreg": plan.registers,
        # Every fused multiply-add is written out, so that all versions round alike.
        "enable_fp_fusion": False,
    }


def _pass_options_in_lowering() -> None:
    """Lets jax-triton 0.3 compile our kernels, and no others, with `backend_options`."""
    from jax.interpreters import mlir
    from jax_triton import triton_lib

    def backend(plan: Plan, device: Any, compute_capability: int) -> Any:
        found = triton_lib.get_cuda_backend(device, compute_capability)
        parse = found.parse_options

        def parse_options(options: dict[str, Any]) -> Any:
            return parse({**options, **backend_options(compute_capability, plan)})

        found.parse_options = parse_options
        return found

    def lower(ctx: Any, *arrays: Any, fn: Any, **params: Any) -> Any:
        init = triton_lib.get_cuda_backend
        if getattr(fn, "__module__", "").startswith(KERNELS):
            init = functools.partial(backend, params["P"])
        return triton_lib.triton_kernel_call_lowering(init, ctx, *arrays, fn=fn, **params)

    mlir.register_lowering(triton_lib.triton_kernel_call_p, lower, platform="cuda")


def needs_dead_code_rule() -> bool:
    """Whether jax-triton's rule for dead code takes two arguments and JAX passes three."""
    from jax._src.interpreters import partial_eval
    from jax_triton import triton_lib

    rule = partial_eval.dce_rules.get(triton_lib.triton_kernel_call_p)
    if rule is None or jax.__version_info__ < (0, 12):
        return False
    return len(inspect.signature(rule).parameters) == 2


def _mend_dead_code_rule() -> None:
    from jax._src.interpreters import partial_eval
    from jax_triton import triton_lib

    def keep(used: Sequence[bool], live: Any, equation: Any) -> Any:
        del used, live
        return [True] * len(equation.invars), equation

    rules: Any = partial_eval.dce_rules
    rules[triton_lib.triton_kernel_call_p] = keep


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a kernel, but for its arrays.

    Attributes:
      kernel: a function of `kernels`.
      name: of the call.
      results: what the kernel writes.
      grid: number of programs along three axes.
      warps: of a program.
      compute_capability: of the GPU to compile for, 90 for 9.0.
      plan: its compile-time argument.
    """

    kernel: Any
    name: str
    results: tuple[jax.ShapeDtypeStruct, ...]
    grid: tuple[int, int, int]
    warps: int
    compute_capability: int
    plan: Plan

    @property
    def options(self) -> dict[str, Any]:
        """What Triton's compiler is told."""
        launch = {"num_warps": self.warps, "num_stages": 1}
        return launch | backend_options(self.compute_capability, self.plan)

    def run(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """Calls the kernel: `jax_triton.triton_call`, alike for its versions.

        Raises:
          Exception: whatever JAX or jax-triton raise, with a note if they were never compiled
            together.
        """
        try:
            return self._run(*arrays)
        except Exception as error:
            if (reason := untested()) is not None:
                error.add_note(f"{reason}; {INSTALL}")
            raise

    def _run(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        jax_triton = load()
        options: dict[str, Any]
        if takes_out_shape(jax_triton):  # the lowering adds the options of the backend
            options = {"out_shape": self.results}
        else:
            backend = backend_options(self.compute_capability, self.plan)
            options = {"out_type": self.results, "backend_options": backend}
        found = jax_triton.triton_call(
            *arrays,
            kernel=self.kernel,
            grid=self.grid,
            name=self.name,
            compute_capability=self.compute_capability,
            num_warps=self.warps,
            num_stages=1,
            **options,
            P=self.plan,
        )
        return tuple(found)

    def compile(self, arrays: Sequence[Any]) -> tuple[str, int]:
        """The PTX of the kernel and its bytes of shared memory, for tools. It needs no GPU.

        Triton keeps it in its own cache. jax-triton compiles with the same options.

        Args:
          arrays: or `jax.ShapeDtypeStruct`s.
        """
        load()
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        types = [f"*{TYPES[str(np.dtype(x.dtype))]}" for x in (*arrays, *self.results)]
        names = self.kernel.arg_names
        signature = dict(zip(names, types, strict=False))
        signature["P"] = "constexpr"
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
        source = ASTSource(self.kernel, signature, {"P": self.plan}, aligned)
        target = GPUTarget("cuda", self.compute_capability, 32)
        found = triton.compile(source, target=target, options=self.options)
        return found.asm["ptx"], found.metadata.shared


_recorded: contextvars.ContextVar[list[tuple[Call, Any]] | None] = contextvars.ContextVar(
    "recorded", default=None
)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[Call, Any]]]:
    """Collects the calls of programs that are traced, with their arrays, for tools."""
    calls: list[tuple[Call, Any]] = []
    token = _recorded.set(calls)
    try:
        yield calls
    finally:
        _recorded.reset(token)


def record(call: Call, arrays: Any) -> None:
    """Adds a call to those of `recorded`, if a tool collects them."""
    calls = _recorded.get()
    if calls is not None:
        calls.append((call, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]))

"""Arithmetic of the GPU kernels, written once: one block of PTX on a GPU, plain jnp elsewhere.

XLA's Triton never fuses a multiplication with an addition, and one of its passes takes time that
grows with the cube of the operations in a kernel (it follows every operation from every load). So
the arithmetic on a column of keys is a function of `ops` and numbers, which `Alu.fuse` turns into
a single operation: the function is run on `Register`s, which write down PTX, instead of on arrays.
"""

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import extend, lax
from jax._src.pallas.triton import lowering, primitives
from jax.interpreters import mlir

BFLOAT16, FLOAT16 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)


class Plain:
    """The operations on arrays; float32 unless said otherwise."""

    @staticmethod
    def fma(a: Any, b: Any, c: Any) -> Any:
        """The sum a * b + c; on a GPU rounded once."""
        return a * b + c

    @staticmethod
    def exp2(x: Any) -> Any:
        """2**x; on a GPU to 2 units in the last place, below 2**-126 flushed to 0."""
        return jnp.exp2(x)

    @staticmethod
    def reciprocal(x: Any) -> Any:
        """1 / x; on a GPU to 1 unit in the last place, for normal x."""
        return 1.0 / x

    @staticmethod
    def absolute(x: Any) -> Any:
        """The magnitude of x."""
        return jnp.abs(x)

    @staticmethod
    def sign_of(d: Any, x: Any, zero_is_positive: bool) -> Any:
        """X with the sign of d times its own."""
        return jnp.where(d >= 0 if zero_is_positive else d > 0, x, -x)

    @staticmethod
    def widen(word: Any, dtype: Any) -> tuple[Any, Any]:
        """The two 16-bit floats in a 32-bit word, as float32."""
        halves = lax.bitcast_convert_type(word, jnp.uint16)
        low, high = lax.bitcast_convert_type(halves, dtype).astype(jnp.float32).T
        return low, high

    @staticmethod
    def narrow(low: Any, high: Any, dtype: Any) -> Any:
        """Two numbers as 16-bit floats in a 32-bit word."""
        halves = lax.bitcast_convert_type(jnp.stack([low, high], 1).astype(dtype), jnp.uint16)
        return lax.bitcast_convert_type(halves, jnp.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Register:
    """A number that only exists as a name in a block of PTX."""

    ops: "Ptx"
    name: str

    def __add__(self, other: Any) -> "Register":
        return self.ops.emit("add.rn.f32", self, other)

    def __sub__(self, other: Any) -> "Register":
        return self.ops.emit("sub.rn.f32", self, other)

    def __mul__(self, other: Any) -> "Register":
        return self.ops.emit("mul.rn.f32", self, other)

    def __neg__(self) -> "Register":
        return self.ops.emit("neg.f32", self)


class Ptx:
    """The operations of `Plain`, written down."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.registers = 0
        self.predicates = 0

    def emit(self, operation: str, *operands: Any) -> Register:
        """One instruction with a new register for its result."""
        result = Register(self, f"t{self.registers}")
        self.registers += 1
        names = ", ".join(_operand(x) for x in (result, *operands))
        self.lines.append(f"{operation} {names};")
        return result

    def fma(self, a: Any, b: Any, c: Any) -> Register:
        """As `Plain.fma`."""
        return self.emit("fma.rn.f32", a, b, c)

    def exp2(self, x: Any) -> Register:
        """As `Plain.exp2`."""
        return self.emit("ex2.approx.ftz.f32", x)

    def reciprocal(self, x: Any) -> Register:
        """As `Plain.reciprocal`."""
        return self.emit("rcp.approx.ftz.f32", x)

    def absolute(self, x: Any) -> Register:
        """As `Plain.absolute`."""
        return self.emit("abs.f32", x)

    def sign_of(self, d: Any, x: Any, zero_is_positive: bool) -> Register:
        """As `Plain.sign_of`."""
        predicate = f"p{self.predicates}"
        self.predicates += 1
        compare = "ge" if zero_is_positive else "gt"
        self.lines.append(f"setp.{compare}.f32 {predicate}, {_operand(d)}, {_operand(0.0)};")
        return self.emit("selp.f32", x, -x, predicate)

    def widen(self, word: Any, dtype: Any) -> tuple[Register, Register]:
        """As `Plain.widen`; a bfloat16 is the upper half of a float32."""
        if dtype == BFLOAT16:
            return self.emit("shl.b32", word, 16), self.emit("and.b32", word, 0xFFFF0000)
        self.lines.append(f"mov.b32 {{h0, h1}}, {_operand(word)};")
        return self.emit("cvt.f32.f16", "h0"), self.emit("cvt.f32.f16", "h1")

    def narrow(self, low: Any, high: Any, dtype: Any) -> Register:
        """As `Plain.narrow`."""
        kind = "bf16x2" if dtype == BFLOAT16 else "f16x2"
        return self.emit(f"cvt.rn.{kind}.f32", high, low)

    def text(self, results: Sequence[Register], inputs: int) -> str:
        """The block: results are operands $0, $1 and so on, inputs follow."""
        lines = ["{", f".reg .b32 t<{self.registers}>;"]
        if self.predicates:
            lines.append(f".reg .pred p<{self.predicates}>;")
        if any("h0" in line for line in self.lines):
            lines.append(".reg .b16 h<2>;")
        lines += self.lines
        # All inputs were read by now, so a result may share a register with one.
        lines += [f"mov.b32 ${i}, {result.name};" for i, result in enumerate(results)]
        text = " ".join([*lines, "}"])
        for i in reversed(range(inputs)):
            text = text.replace(f"#{i}#", f"${len(results) + i}")
        return text


def _operand(x: Any) -> str:
    if isinstance(x, float):
        return "0f" + struct.pack(">f", x).hex().upper()
    return x.name if isinstance(x, Register) else str(x)


# `plt.elementwise_inline_asm` with several results fails to lower: its rule hands them on as one.
# So this primitive borrows the rule and takes them out. The one use of a private part of JAX.
_block_p = extend.core.Primitive("local_relation_block")
_block_p.multiple_results = True


@_block_p.def_abstract_eval
def _abstract_block(*inputs: Any, results: Any, **_: Any) -> Any:
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in results]


@lowering.register_lowering(_block_p)
def _lower_block(ctx: Any, *inputs: Any, results: Any, text: str, constraints: str) -> Any:
    rule: Callable[..., Any] = lowering.triton_lowering_rules[primitives.elementwise_inline_asm_p]
    [lowered] = rule(
        ctx, *inputs, asm=text, constraints=constraints, pack=1, result_shape_dtypes=results
    )
    return [lowered] if len(results) == 1 else list(lowered)


_opaque_p = extend.core.Primitive("local_relation_opaque")
_opaque_p.def_impl(lambda x, *_: x)
_opaque_p.def_abstract_eval(lambda x, *_: x)
mlir.register_lowering(_opaque_p, lambda ctx, x, *_: [x])


@lowering.register_lowering(_opaque_p)
def _lower_opaque(ctx: Any, *inputs: Any) -> Any:
    constraints = "=r" + ",r" * len(inputs)
    results = tuple(ctx.avals_in[:1])
    return _lower_block(
        ctx, *inputs, results=results, text="mov.b32 $0, $1;", constraints=constraints
    )[0]


def opaque(x: jax.Array, *loops: jax.Array) -> jax.Array:
    """An int32 array, of whose values the compiler of a kernel must assume nothing.

    Args:
      x: the array.
      *loops: numbers of the loops' turns out of which nothing that depends on the result may move.
    """
    return _opaque_p.bind(x, *(jnp.broadcast_to(turn, x.shape) for turn in loops))


@dataclasses.dataclass(frozen=True)
class Alu:
    """Does the arithmetic.

    Attributes:
      inline: as blocks of PTX. False gives plain jnp, for interpret mode, which cannot run PTX.
    """

    inline: bool

    def fuse(self, body: Callable[..., Any], *inputs: Any, words: bool = False) -> Any:
        """Runs `body(ops, *inputs)` as one operation.

        Args:
          body: arithmetic on float32 (or 32-bit words) with `ops`, +, -, * and Python floats. Its
            results must not be inputs.
          *inputs: trees of arrays of one shape, or arrays that broadcast to it.
          words: whether the results are 32-bit words, not float32.

        Returns:
          What body returns, as arrays.
        """
        if not self.inline:
            return body(Plain, *inputs)
        leaves, tree = jax.tree_util.tree_flatten(inputs)
        shape = jnp.broadcast_shapes(*(x.shape for x in leaves))
        ops = Ptx()
        names = [Register(ops, f"#{i}#") for i in range(len(leaves))]
        results, out_tree = jax.tree_util.tree_flatten(
            body(ops, *jax.tree_util.tree_unflatten(tree, names))
        )
        out = jax.ShapeDtypeStruct(shape, jnp.int32 if words else jnp.float32)
        constraints = ["=r" if words else "=f"] * len(results)
        constraints += ["r" if x.dtype == jnp.int32 else "f" for x in leaves]
        arrays = _block_p.bind(
            *(jnp.broadcast_to(x, shape) for x in leaves),
            results=(out,) * len(results),
            text=ops.text(results, len(leaves)),
            constraints=",".join(constraints),
        )
        return jax.tree_util.tree_unflatten(out_tree, arrays)

    def fuse_each(
        self, body: Callable[..., Any], shared: tuple[Any, ...], each: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """A list of `body(ops, *shared, *x)` for each x, as one operation."""
        return self.fuse(
            lambda ops, shared, each: [body(ops, *shared, *x) for x in each], shared, list(each)
        )


def dot(ops: Any, a: Sequence[Any], b: Sequence[Any], start: Any) -> Any:
    """Start plus the sum of products, as a chain of fused multiply-adds."""
    for x, y in zip(a, b, strict=True):
        start = ops.fma(x, y, start)
    return start

"""Inline assembly: arithmetic recorded as PTX, and a value hidden from the compiler."""

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import extend
from jax._src.pallas.triton import lowering, primitives
from jax.interpreters import mlir

BFLOAT16 = jnp.dtype(jnp.bfloat16)
MIN_PAIRED = 4  # products of a sum in pairs; the halves of fewer cost as much as they save


@dataclasses.dataclass(frozen=True, eq=False)
class Register:
    """A number that exists only as a name in a block of PTX.

    Attributes:
      ops: the recording that it belongs to.
      name: of the PTX register, or `#i#` for input i of the block.
    """

    ops: "PtxOps"
    name: str

    def __add__(self, other: "Register | float") -> "Register":
        return self.ops.emit("add.rn.f32", self, other)

    def __sub__(self, other: "Register | float") -> "Register":
        return self.ops.emit("sub.rn.f32", self, other)

    def __mul__(self, other: "Register | float") -> "Register":
        return self.ops.emit("mul.rn.f32", self, other)

    def __neg__(self) -> "Register":
        return self.ops.emit("neg.f32", self)


Operand = Register | float | int | str


class PtxOps:
    """`arithmetic.Ops` that record PTX instead of computing.

    With pairs, sums over channels take two float32 at a time, in registers of 64 bits. The
    assembler then chooses the others so that packing and unpacking them takes no instruction.
    """

    def __init__(self, pairs: bool = False) -> None:
        self.pairs = pairs
        self.lines: list[str] = []
        self.registers = 0
        self.wide_registers = 0
        self.predicates = 0
        self.packed: dict[tuple[str, str], str] = {}
        self.halves: dict[str, Register] = {}

    def emit(self, operation: str, *operands: Operand) -> Register:
        """Records one instruction; its result is a new register."""
        result = Register(self, f"t{self.registers}")
        self.registers += 1
        names = ", ".join(_text(x) for x in (result, *operands))
        self.lines.append(f"{operation} {names};")
        return result

    def fma(self, a: Register | float, b: Register | float, c: Register | float) -> Register:
        """See `Ops`."""
        return self.emit("fma.rn.f32", a, b, c)

    def add_weighted(
        self, weight: Register, x: Sequence[Register], sums: Sequence[Register]
    ) -> list[Register]:
        """See `Ops`."""
        if not self.pairs or len(x) % 2:
            return [self.fma(weight, a, total) for a, total in zip(x, sums, strict=True)]
        both, found = self._pack(weight, weight), list[Register]()
        for i in range(0, len(x), 2):
            total = self._pack(sums[i], sums[i + 1])
            found += self._unpack(self._fma_of_pair(both, self._pack(x[i], x[i + 1]), total))
        return found

    def dot(self, a: Sequence[Register], b: Sequence[Register], start: Register) -> Register:
        """See `Ops`."""
        if not self.pairs or len(a) % 2 or len(a) < MIN_PAIRED:
            for x, y in zip(a, b, strict=True):
                start = self.fma(x, y, start)
            return start
        # Both halves begin with half of it. The assembler would write a 0 again for each product.
        if start.name not in self.halves:
            self.halves[start.name] = start * 0.5
        half = self.halves[start.name]
        total = self._pack(half, half)
        for i in range(0, len(a), 2):
            of_a, of_b = self._pack(a[i], a[i + 1]), self._pack(b[i], b[i + 1])
            total = self._fma_of_pair(of_a, of_b, total)
        low, high = self._unpack(total)
        return low + high

    def _pack(self, low: Register, high: Register) -> str:
        """A register of 64 bits that holds both."""
        names = low.name, high.name
        if names not in self.packed:
            self.packed[names] = self._wide("mov.b64", f"{{{names[0]}, {names[1]}}}")
        return self.packed[names]

    def _unpack(self, pair: str) -> list[Register]:
        """Both halves of a register of 64 bits."""
        found = [Register(self, f"t{self.registers + i}") for i in range(2)]
        self.registers += 2
        self.lines.append(f"mov.b64 {{{found[0].name}, {found[1].name}}}, {pair};")
        return found

    def _fma_of_pair(self, a: str, b: str, c: str) -> str:
        return self._wide("fma.rn.f32x2", a, b, c)

    def _wide(self, operation: str, *operands: str) -> str:
        """Records one instruction; its result is a new register of 64 bits."""
        result = f"w{self.wide_registers}"
        self.wide_registers += 1
        self.lines.append(f"{operation} {result}, {', '.join(operands)};")
        return result

    def exp2(self, x: Register) -> Register:
        """See `Ops`."""
        return self.emit("ex2.approx.ftz.f32", x)

    def reciprocal(self, x: Register) -> Register:
        """See `Ops`."""
        return self.emit("rcp.approx.ftz.f32", x)

    def absolute(self, x: Register) -> Register:
        """See `Ops`."""
        return self.emit("abs.f32", x)

    def sign_of(self, d: Register, x: Register, zero_is_positive: bool) -> Register:
        """See `Ops`."""
        predicate = f"p{self.predicates}"
        self.predicates += 1
        compare = "ge" if zero_is_positive else "gt"
        self.lines.append(f"setp.{compare}.f32 {predicate}, {_text(d)}, {_text(0.0)};")
        return self.emit("selp.f32", x, -x, predicate)

    def widen(self, word: Register, dtype: np.dtype) -> tuple[Register, Register]:
        """See `Ops`. A bfloat16 is the upper half of a float32."""
        if dtype == BFLOAT16:
            return self.emit("shl.b32", word, 16), self.emit("and.b32", word, 0xFFFF0000)
        self.lines.append(f"mov.b32 {{h0, h1}}, {_text(word)};")
        return self.emit("cvt.f32.f16", "h0"), self.emit("cvt.f32.f16", "h1")

    def narrow(self, low: Register, high: Register, dtype: np.dtype) -> Register:
        """See `Ops`."""
        kind = "bf16x2" if dtype == BFLOAT16 else "f16x2"
        return self.emit(f"cvt.rn.{kind}.f32", high, low)

    def text(self, results: Sequence[Register], inputs: int) -> str:
        """The block of PTX: operands $0, $1 and so on are the results, then the inputs."""
        lines = ["{", f".reg .b32 t<{self.registers}>;"]
        if self.wide_registers:
            lines.append(f".reg .b64 w<{self.wide_registers}>;")
        if self.predicates:
            lines.append(f".reg .pred p<{self.predicates}>;")
        if any("h0" in line for line in self.lines):
            lines.append(".reg .b16 h<2>;")
        lines += self.lines
        # Results are written after every input was read, so the two may share registers.
        lines += [f"mov.b32 ${i}, {result.name};" for i, result in enumerate(results)]
        text = " ".join([*lines, "}"])
        for i in reversed(range(inputs)):
            text = text.replace(f"#{i}#", f"${len(results) + i}")
        return text


def _text(x: Operand) -> str:
    if isinstance(x, float):
        return "0f" + struct.pack(">f", x).hex().upper()
    return x.name if isinstance(x, Register) else str(x)


# `plt.elementwise_inline_asm` with several results does not lower: its rule returns them wrapped in
# one list. This primitive borrows the rule and unwraps them. No other private part of JAX is used.
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


def record(body: Callable[..., Any], inputs: Any, dtype: Any, pairs: bool = False) -> Any:
    """Runs `body(ops, *inputs)` as one block of inline PTX.

    Args:
      body: arithmetic with `arithmetic.Ops`; none of its results may be an input.
      inputs: tree of arrays that broadcast to one shape.
      dtype: of all results, float32 or int32.
      pairs: see `PtxOps`.

    Returns:
      The tree of `body`'s results, as arrays.
    """
    leaves, tree = jax.tree_util.tree_flatten(inputs)
    shape = jnp.broadcast_shapes(*(x.shape for x in leaves))
    ops = PtxOps(pairs)
    names = [Register(ops, f"#{i}#") for i in range(len(leaves))]
    results, out_tree = jax.tree_util.tree_flatten(
        body(ops, *jax.tree_util.tree_unflatten(tree, names))
    )
    constraints = ["=r" if dtype == jnp.int32 else "=f"] * len(results)
    constraints += ["r" if x.dtype == jnp.int32 else "f" for x in leaves]
    arrays = _block_p.bind(
        *(jnp.broadcast_to(x, shape) for x in leaves),
        results=(jax.ShapeDtypeStruct(shape, dtype),) * len(results),
        text=ops.text(results, len(leaves)),
        constraints=",".join(constraints),
    )
    return jax.tree_util.tree_unflatten(out_tree, arrays)


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


def opaque(x: jax.Array, *after: jax.Array) -> jax.Array:
    """Returns an int32 array of whose values the compiler can assume nothing.

    Args:
      x: the array.
      *after: loop counters. The compiler moves nothing that depends on the result out of these
        loops.
    """
    return _opaque_p.bind(x, *(jnp.broadcast_to(i, x.shape) for i in after))

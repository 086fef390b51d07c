"""Sums over a lane's channels: one by one or, on GPUs that have the instruction for it, in pairs.

A GPU of compute capability 10.0 multiplies and adds two float32 in one instruction, if they are in
neighbouring registers. `Plan.pairs` says whether a kernel uses it. Pairs exist only inside the
inline PTX. The assembler chooses the registers so that they need no moves.
"""

import triton
import triton.language as tl


@triton.jit
def fma_of_pair(a0, a1, b0, b1, c0, c1):
    """(a0 * b0 + c0, a1 * b1 + c1), each rounded once."""
    return tl.inline_asm_elementwise(
        "{ .reg .b64 a, b, c; mov.b64 a, {$2, $3}; mov.b64 b, {$4, $5}; mov.b64 c, {$6, $7}; "
        "fma.rn.f32x2 c, a, b, c; mov.b64 {$0, $1}, c; }",
        "=f,=f,f,f,f,f,f,f",
        [a0, a1, b0, b1, c0, c1],
        (tl.float32, tl.float32),
        True,
        1,
    )


@triton.jit
def add_weighted(weight, x, sums, P: tl.constexpr):
    """The sums plus weight * x, for each channel."""
    M: tl.constexpr = P.m
    found = ()
    if P.pairs:
        for j in tl.static_range(0, M, 2):
            found += fma_of_pair(weight, weight, x[j], x[j + 1], sums[j], sums[j + 1])
    else:
        for j in tl.static_range(M):
            found += (tl.fma(weight, x[j], sums[j]),)
    return found


@triton.jit
def dot(a, b, start, P: tl.constexpr):
    """The start plus the products of channels, as a chain of fused multiply-adds."""
    M: tl.constexpr = P.m
    if P.pairs:
        # Both halves begin with half of it. The assembler would write a 0 again for each product.
        low, high = start * 0.5, start * 0.5
        for j in tl.static_range(0, M, 2):
            low, high = fma_of_pair(a[j], a[j + 1], b[j], b[j + 1], low, high)
        # LLVM would add two such sums at a time, and move halves about for it.
        found = tl.inline_asm_elementwise(
            "add.rn.f32 $0, $1, $2;", "=f,f,f", [low, high], tl.float32, True, 1
        )
    else:
        found = start
        for j in tl.static_range(M):
            found = tl.fma(a[j], b[j], found)
    return found

"""Channels in registers: float32 or, on GPUs that have the instructions for it, pairs of float32.

A GPU of compute capability 10.0 multiplies and adds two float32 at a time, if they are in
neighbouring registers. Such a pair is a word of 64 bits here, so that LLVM does not take it apart.
`Plan.pairs` says which of the two a kernel uses. A lane's channels are a tuple of M float32 or of
M / 2 pairs.
"""

import triton
import triton.language as tl


@triton.jit
def pair(low, high):
    """Two float32 as one word of 64 bits."""
    return tl.inline_asm_elementwise(
        "mov.b64 $0, {$1, $2};", "=l,f,f", [low, high], tl.int64, True, 1
    )


@triton.jit
def halves(x):
    """The two float32 of a pair."""
    return tl.inline_asm_elementwise(
        "mov.b64 {$0, $1}, $2;", "=f,=f,l", [x], (tl.float32, tl.float32), True, 1
    )


# LLVM would move halves about to add two such sums at a time.


@triton.jit
def sum_of_halves(x):
    """The sum of the halves of a pair."""
    return tl.inline_asm_elementwise(
        "{ .reg .f32 a, b; mov.b64 {a, b}, $1; add.rn.f32 $0, a, b; }",
        "=f,l",
        [x],
        tl.float32,
        True,
        1,
    )


@triton.jit
def add_halves(x, start):
    """The start plus the halves of a pair."""
    return tl.inline_asm_elementwise(
        "{ .reg .f32 a, b; mov.b64 {a, b}, $1; add.rn.f32 a, a, $2; add.rn.f32 $0, a, b; }",
        "=f,l,f",
        [x, start],
        tl.float32,
        True,
        1,
    )


@triton.jit
def multiply_pairs(a, b):
    """The products of pairs."""
    return tl.inline_asm_elementwise(
        "mul.rn.f32x2 $0, $1, $2;", "=l,l,l", [a, b], tl.int64, True, 1
    )


@triton.jit
def fma_pairs(a, b, c):
    """The sums a * b + c of pairs, each rounded once."""
    return tl.inline_asm_elementwise(
        "fma.rn.f32x2 $0, $1, $2, $3;", "=l,l,l,l", [a, b, c], tl.int64, True, 1
    )


@triton.jit
def in_registers(x, P: tl.constexpr):
    """Channels as the kernels compute with them, from a tuple of M float32."""
    M: tl.constexpr = P.m
    found = x
    if P.pairs:
        found = ()
        for j in tl.static_range(0, M, 2):
            found += (pair(x[j], x[j + 1]),)
    return found


@triton.jit
def all_in_registers(pixels, P: tl.constexpr):
    """`in_registers` for every pixel of a strip."""
    found = ()
    for i in tl.static_range(len(pixels)):
        found += (in_registers(pixels[i], P),)
    return found


@triton.jit
def as_floats(x, P: tl.constexpr):
    """The M float32 of channels."""
    found = x
    if P.pairs:
        found = ()
        for j in tl.static_range(len(x)):
            found += halves(x[j])
    return found


@triton.jit
def no_channels(P: tl.constexpr):
    """Channels that are all 0."""
    M: tl.constexpr = P.m
    half: tl.constexpr = P.m // 2
    if P.pairs:
        found = (tl.zeros((P.lanes,), tl.int64),) * half
    else:
        found = (tl.zeros((P.lanes,), tl.float32),) * M
    return found


@triton.jit
def add_weighted(weight, x, sums, P: tl.constexpr):
    """The sums plus weight * x, for each channel."""
    found = ()
    if P.pairs:
        both = pair(weight, weight)
        for j in tl.static_range(len(x)):
            found += (fma_pairs(both, x[j], sums[j]),)
    else:
        for j in tl.static_range(len(x)):
            found += (tl.fma(weight, x[j], sums[j]),)
    return found


@triton.jit
def start_of_dot(start, P: tl.constexpr):
    """The start of a `dot` as a pair, if there are pairs: an instruction less for each product.

    Both halves are registers. A half that is 0 would be written again for each product.
    """
    found = start
    if P.pairs:
        half = start * 0.5
        found = pair(half, half)
    return found


@triton.jit
def dot(a, b, start, P: tl.constexpr):
    """The start plus the products of channels, as a chain of fused multiply-adds."""
    found = start
    if not P.pairs:
        for j in tl.static_range(len(a)):
            found = tl.fma(a[j], b[j], found)
        total = found
    elif start.dtype == tl.int64:
        for j in tl.static_range(len(a)):
            found = fma_pairs(a[j], b[j], found)
        total = sum_of_halves(found)
    else:
        both = multiply_pairs(a[0], b[0])
        for j in tl.static_range(1, len(a)):
            both = fma_pairs(a[j], b[j], both)
        total = add_halves(both, start)
    return total

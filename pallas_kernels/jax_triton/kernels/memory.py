"""How lanes read and write floats: up to 16 bytes at a time, as one instruction of PTX.

`tl.load` would do, were it not for two costs. Triton's coalescing pass follows every operation
from every load, in a time that grows with the cube of their number: minutes for these kernels. And
here the distance from an address is part of the instruction, so that neighbours need no
arithmetic.
"""

import triton
import triton.language as tl


@triton.jit
def address_of(pointer, index):
    """The address of element `index` as a 64-bit number, so that PTX can take it."""
    return (pointer + index).to(tl.int64)


@triton.jit
def load_words(address, OFFSET: tl.constexpr, WORDS: tl.constexpr, CONSTANT: tl.constexpr = True):
    """1, 2 or 4 neighbouring words of 32 bits, OFFSET bytes from an address, as a tuple.

    CONSTANT says that the kernel does not write there, so that reads may move or be shared.
    """
    if WORDS == 4:
        found = tl.inline_asm_elementwise(
            f"ld.global.v4.b32 {{$0, $1, $2, $3}}, [$4+{OFFSET}];",
            "=r,=r,=r,=r,l",
            [address],
            (tl.int32, tl.int32, tl.int32, tl.int32),
            CONSTANT,
            1,
        )
    elif WORDS == 2:
        found = tl.inline_asm_elementwise(
            f"ld.global.v2.b32 {{$0, $1}}, [$2+{OFFSET}];",
            "=r,=r,l",
            [address],
            (tl.int32, tl.int32),
            CONSTANT,
            1,
        )
    else:
        word = tl.inline_asm_elementwise(
            f"ld.global.b32 $0, [$1+{OFFSET}];", "=r,l", [address], tl.int32, CONSTANT, 1
        )
        found = (word,)
    return found


@triton.jit
def load_half(address, OFFSET: tl.constexpr):
    """A word whose lower half is the 16 bits at an address."""
    return tl.inline_asm_elementwise(
        f"ld.global.u16 $0, [$1+{OFFSET}];", "=r,l", [address], tl.int32, True, 1
    )


@triton.jit
def widen(word, DTYPE: tl.constexpr):
    """The two 16-bit floats of a word as float32, the lower half first."""
    if DTYPE == "bf16":  # a bfloat16 is the upper half of a float32
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
    else:
        low = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def load_floats(
    address, OFFSET: tl.constexpr, COUNT: tl.constexpr, VECTOR: tl.constexpr, DTYPE: tl.constexpr
):
    """COUNT neighbouring floats as a tuple of float32, VECTOR of them at a time."""
    found = ()
    if DTYPE == "fp32":
        for i in tl.static_range(0, COUNT, VECTOR):
            words = load_words(address, OFFSET + 4 * i, VECTOR)
            for j in tl.static_range(VECTOR):
                found += (words[j].to(tl.float32, bitcast=True),)
    elif VECTOR == 1:
        for i in tl.static_range(COUNT):
            found += (widen(load_half(address, OFFSET + 2 * i), DTYPE)[0],)
    else:
        for i in tl.static_range(0, COUNT, VECTOR):
            words = load_words(address, OFFSET + 2 * i, VECTOR // 2)
            for j in tl.static_range(VECTOR // 2):
                found += widen(words[j], DTYPE)
    return found


@triton.jit
def narrow(low, high, DTYPE: tl.constexpr):
    """A word that holds two float32, rounded to 16-bit floats."""
    if DTYPE == "bf16":
        word = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], tl.int32, True, 1
        )
    else:
        word = tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], tl.int32, True, 1
        )
    return word


@triton.jit
def store_words(address, OFFSET: tl.constexpr, words, mask, MASKED: tl.constexpr):
    """Writes a tuple of 1, 2 or 4 words; only where `mask` is not 0 if MASKED."""
    if MASKED:
        before: tl.constexpr = "{ .reg .pred p; setp.ne.b32 p, $1, 0; @p "
        after: tl.constexpr = " mov.b32 $0, 0; }"
    else:
        before: tl.constexpr = "{ "
        after: tl.constexpr = " mov.b32 $0, 0; }"
    if len(words) == 4:
        tl.inline_asm_elementwise(
            f"{before}st.global.v4.b32 [$2+{OFFSET}], {{$3, $4, $5, $6}};{after}",
            "=r,r,l,r,r,r,r",
            [mask, address, words[0], words[1], words[2], words[3]],
            tl.int32,
            False,
            1,
        )
    elif len(words) == 2:
        tl.inline_asm_elementwise(
            f"{before}st.global.v2.b32 [$2+{OFFSET}], {{$3, $4}};{after}",
            "=r,r,l,r,r",
            [mask, address, words[0], words[1]],
            tl.int32,
            False,
            1,
        )
    else:
        tl.inline_asm_elementwise(
            f"{before}st.global.b32 [$2+{OFFSET}], $3;{after}",
            "=r,r,l,r",
            [mask, address, words[0]],
            tl.int32,
            False,
            1,
        )


@triton.jit
def store_half(address, OFFSET: tl.constexpr, word, mask, MASKED: tl.constexpr):
    """Writes the lower half of a word; only where `mask` is not 0 if MASKED."""
    if MASKED:
        before: tl.constexpr = "{ .reg .pred p; setp.ne.b32 p, $1, 0; @p "
    else:
        before: tl.constexpr = "{ "
    tl.inline_asm_elementwise(
        f"{before}st.global.u16 [$2+{OFFSET}], $3; mov.b32 $0, 0; }}",
        "=r,r,l,r",
        [mask, address, word],
        tl.int32,
        False,
        1,
    )


@triton.jit
def store_vector(
    address, OFFSET: tl.constexpr, parts, DTYPE: tl.constexpr, mask, MASKED: tl.constexpr
):
    """Writes a tuple of float32 as one access."""
    if DTYPE == "fp32":
        words = ()
        for i in tl.static_range(len(parts)):
            words += (parts[i].to(tl.int32, bitcast=True),)
        store_words(address, OFFSET, words, mask, MASKED)
    elif len(parts) == 1:
        store_half(address, OFFSET, narrow(parts[0], parts[0], DTYPE), mask, MASKED)
    else:
        words = ()
        for i in tl.static_range(0, len(parts), 2):
            words += (narrow(parts[i], parts[i + 1], DTYPE),)
        store_words(address, OFFSET, words, mask, MASKED)


@triton.jit
def store_floats(
    address,
    OFFSET: tl.constexpr,
    parts,
    VECTOR: tl.constexpr,
    BYTES: tl.constexpr,
    DTYPE: tl.constexpr,
    mask,
    MASKED: tl.constexpr,
):
    """Writes neighbouring floats, VECTOR of them at a time."""
    for i in tl.static_range(0, len(parts), VECTOR):
        store_vector(address, OFFSET + BYTES * i, parts[i : i + VECTOR], DTYPE, mask, MASKED)

"""The arithmetic of one tap: Phi of Eqns. 3 to 5, its slopes, and exponentials."""

import triton
import triton.language as tl


@triton.jit
def exp2(x):
    """2**x to 2 units in the last place; results below 2**-126 become 0."""
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def reciprocal(x):
    """1 / x of a normal x, to 1 unit in the last place."""
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def prepared(x, P: tl.constexpr, FAST: tl.constexpr):
    """The D components of the side that stays in registers, as `logit` takes them.

    Fast logits are in units of log 2, so that a weight is 2**logit without a multiplication. With
    16-bit queries and keys, their squared difference is (a q - a k)^2 with a^2 = scale * log2(e),
    which saves another instruction. Exact logits are in natural units and take q - k as it is.
    """
    D: tl.constexpr = P.depth
    found = ()
    for j in tl.static_range(D):
        if P.prescaled(FAST):
            found += (x[j] * P.root(),)
        elif P.similarity == "multiplication":
            found += (x[j] * P.coefficient(FAST),)
        else:
            found += (x[j],)
    return found


@triton.jit
def logit(mine, other, prior, P: tl.constexpr, FAST: tl.constexpr):
    """The logit, and for each component the slope that `accumulate` needs.

    Args:
      mine: the prepared components of the side that stays in registers.
      other: the components of the side that streams past.
      prior: of the tap.
    """
    D: tl.constexpr = P.depth
    slopes = ()
    if P.similarity == "multiplication":
        found = prior
        for j in tl.static_range(D):
            found = tl.fma(mine[j], other[j], found)
            slopes += (other[j],)
    elif P.prescaled(FAST):
        found = prior
        for j in tl.static_range(D):
            d = tl.fma(other[j], -P.root(), mine[j])
            found = tl.fma(-d, d, found)
            slopes += (d,)
    else:
        total = tl.zeros_like(prior)
        for j in tl.static_range(D):
            d = mine[j] - other[j]
            slopes += (d,)
            if P.similarity == "squared_difference":
                total = tl.fma(d, d, total)
            else:
                total += tl.abs(d)
        found = tl.fma(total, -P.coefficient(FAST), prior)
    return found, slopes


@triton.jit
def imprecise(mine, P: tl.constexpr):
    """Where rounding a*q may show in 16-bit results: |q| > 64 / a."""
    D: tl.constexpr = P.depth
    found = tl.zeros_like(mine[0]) > 0
    if P.prescaled(True):
        for j in tl.static_range(D):
            found |= tl.abs(mine[j]) > 64.0
    return found


@triton.jit
def accumulate(sums, d_logit, slopes, P: tl.constexpr):
    """The gradient of the side that stays in registers plus one tap, but for `gradient_factor`."""
    D: tl.constexpr = P.depth
    found = ()
    for j in tl.static_range(D):
        if P.similarity == "absolute_difference":
            # Where query and key are equal, JAX's derivative of |query - key| is 1.
            positive = slopes[j] > 0 if P.by_key else slopes[j] >= 0
            found += (sums[j] + tl.where(positive, d_logit, -d_logit),)
        else:
            found += (tl.fma(d_logit, slopes[j], sums[j]),)
    return found


@triton.jit
def scaled(x, factor):
    """Every entry of a tuple times a factor."""
    found = ()
    for j in tl.static_range(len(x)):
        found += (x[j] * factor,)
    return found


@triton.jit
def replaced(all, i: tl.constexpr, x):
    """The tuple with x as its entry i."""
    return all[:i] + (x,) + all[i + 1 :]

"""The specification: local relation in plain jnp, windows unfolded, differentiated by JAX.

It is slow and holds every window in memory, so that each line can be checked against the paper.
The other implementations are tested against this one.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.spec import Inputs, Residuals, Spec, compute_dtype

DESCRIPTION = "plain jnp: every platform, dtype and option"


def unsupported(spec: Spec, inputs: Inputs) -> str | None:
    """None: it runs every problem."""
    del spec, inputs
    return None


def unavailable() -> str | None:
    """None: it runs on every machine."""
    return None


def unfold(array: jax.Array, spec: Spec) -> jax.Array:
    """All windows of an array, zeros outside the image: (B,H,W,...) -> (B,Ho,Wo,Kh*Kw,...)."""
    (kh, kw), (ph, pw) = spec.kernel_size, spec.padding
    ho, wo = spec.output_size(*array.shape[1:3])
    border = [(0, 0), (ph, ph), (pw, pw)] + [(0, 0)] * (array.ndim - 3)
    padded = jnp.pad(array, border)
    taps = []
    for a in range(kh):
        for b in range(kw):
            y, x, s = a * spec.dilation, b * spec.dilation, spec.stride
            taps.append(padded[:, y : y + (ho - 1) * s + 1 : s, x : x + (wo - 1) * s + 1 : s])
    return jnp.stack(taps, axis=3)


def forward(spec: Spec, inputs: Inputs) -> tuple[jax.Array, None]:
    """Eqns. 1 and 2 as they are written; shapes as in `local_relation`. There is no normaliser.

    Taps outside the image are excluded from the softmax and contribute nothing. (The authors'
    released op gives them a logit of -100 instead: the same weights for ordinary logits.)
    """
    query, key, value, prior = inputs
    dtype = compute_dtype(*inputs)
    batch, ho, wo, groups, _ = query.shape
    channels = value.shape[-1]

    inside = unfold(jnp.ones((1, *value.shape[1:3]), bool), spec)  # (1,Ho,Wo,K)
    inside = inside[:, :, :, None]  # (1,Ho,Wo,1,K)
    keys = unfold(key.astype(dtype), spec)  # (B,Ho,Wo,K,G,D)
    logits = spec.phi(query.astype(dtype)[:, :, :, None], keys)  # (B,Ho,Wo,K,G)
    logits = jnp.swapaxes(logits, 3, 4)  # (B,Ho,Wo,G,K)
    if prior is not None:
        logits = logits + prior.astype(dtype).reshape(groups, spec.taps)
    if spec.normalization == "softmax":
        weights = jax.nn.softmax(logits, axis=-1, where=inside)
    else:
        weights = jnp.where(inside, logits, 0)

    spare = groups * spec.channels_per_group - channels  # the last group may be partial
    values = jnp.pad(value.astype(dtype), ((0, 0), (0, 0), (0, 0), (0, spare)))
    values = unfold(values, spec)
    values = values.reshape(batch, ho, wo, spec.taps, groups, spec.channels_per_group)
    out = jnp.einsum("bhwgk,bhwkgm->bhwgm", weights, values, precision="highest")
    return out.reshape(batch, ho, wo, -1)[..., :channels].astype(value.dtype), None


def backward(spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """The gradients of the inputs, as JAX derives them from `forward`."""
    _, vjp = jax.vjp(lambda inputs: forward(spec, inputs)[0], residuals.inputs)
    [gradients] = vjp(d_out)
    return gradients

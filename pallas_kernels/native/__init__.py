"""Local relation in C++, for CPUs: a fraction of the time of `xla`, both to run and to compile.

`kernels.cc` explains the algorithm and is the file to read first. `layout.h`, `window.h` and
`vectors.h` are what it is made of. `ffi.cc` and `calls.py` are the two ends of the custom calls,
`build.py` compiles, and `library.py` loads. `stem.cc` and `stem.py` are another operation: what the
first layer of a network makes of images. `image_rows.h` and `images.py` are a local relation that
computes its values from images. `channel_sums.cc` and `channel_sums.py` take the means that batch
normalisation needs, `weight_gradients.cc` and `weight_gradients.py` the gradients of the kernels of
1x1 convolutions, and `row_products.cc` and `row_products.py` are these convolutions.

The library is compiled when the package is installed, if there is a C++ compiler. A program that
is exported by `jax.export` does not need it, because it holds the `xla` implementation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.native import calls, library
from pallas_kernels.platform_switch import current_platform
from pallas_kernels.spec import Inputs, Normalizer, Residuals, Spec

DESCRIPTION = "compiled C++ on this CPU"

# Places of a row are 32-bit numbers.
MAX_WIDTH = 2**29


def unsupported(spec: Spec, inputs: Inputs) -> str | None:
    """Why it cannot run a problem on any machine, with the mend; None if it can."""
    for name, array in inputs._asdict().items():
        if array is not None and np.dtype(array.dtype).itemsize > 4:
            return f"{name} is {array.dtype}; use float32, bfloat16, float16, or 'xla'"
    width = inputs.value.shape[2] + spec.dilation * spec.kernel_size[1]
    if width > MAX_WIDTH:
        return f"a row with its border has {width} pixels, more than {MAX_WIDTH}; use 'xla'"
    return None


def unavailable() -> str | None:
    """Why this machine cannot run it, with the mend; None if it can."""
    platform = current_platform()
    if platform != "cpu":
        return f"JAX computes on {platform} here, and this is for CPUs; use 'pallas' or 'xla'"
    return library.obstacle()


def forward(spec: Spec, inputs: Inputs) -> tuple[jax.Array, Normalizer | None]:
    """The output, and the normaliser for the backward pass in float32."""
    query, key, value = _readable(inputs)
    out_dtype = inputs.value.dtype if inputs.value.dtype in calls.READ else jnp.float32
    prior = _prior(spec, inputs)
    out, *normalizer = calls.forward(spec, query, key, value, prior, out_dtype)
    softmax = spec.normalization == "softmax"
    return out.astype(inputs.value.dtype), Normalizer(*normalizer) if softmax else None


def backward(spec: Spec, residuals: Residuals, d_out: jax.Array) -> Inputs:
    """The gradients of the inputs, each in the dtype of its array."""
    inputs, out = residuals.inputs, residuals.out
    query, key, value = _readable(inputs)
    prior = _prior(spec, inputs)
    normalizer = residuals.normalizer or Normalizer(*[jnp.zeros((0,), jnp.float32)] * 2)
    if spec.normalization == "none":
        out = jnp.zeros((0,), jnp.float32)  # not read
    elif out.dtype != jnp.float32:
        # With the rounded output, g . out would be the largest error of the query's gradient.
        out, *_ = calls.forward(spec, query, key, value, prior, jnp.float32)
    *gradients, d_prior = calls.backward(
        spec, query, key, value, prior, out, calls.readable(d_out), *normalizer
    )
    dq, dk, dv = (
        x.astype(like.dtype)
        for x, like in zip(gradients, (inputs.query, inputs.key, inputs.value), strict=True)
    )
    if inputs.prior is None:
        return Inputs(dq, dk, dv)
    return Inputs(dq, dk, dv, d_prior.sum(0).astype(inputs.prior.dtype))


def _readable(inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value in dtypes that the C++ reads."""
    return calls.readable(inputs.query), calls.readable(inputs.key), calls.readable(inputs.value)


def _prior(spec: Spec, inputs: Inputs) -> jax.Array:
    """(G, Kh, Kw) in float32, zeros where there is none."""
    if inputs.prior is None:
        return jnp.zeros((inputs.query.shape[3], *spec.kernel_size), jnp.float32)
    return inputs.prior.astype(jnp.float32)

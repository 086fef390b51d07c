"""Non-local layers and blocks, with which the paper compares local relations."""

import jax
import jax.numpy as jnp
from flax import nnx

from lrnet_jax.layers.batch_norm import BatchNorm
from lrnet_jax.layers.channel_transformation import ChannelTransformation
from lrnet_jax.layers.pooling import max_pool_cells


class NonLocal(nnx.Module):
    """Attention of every output pixel to the whole image, coarsened by max pooling.

        y[p] = CT( sum over j of  softmax_j( theta[p] . phi[j] / sqrt(inner) ) * g[j] )

    with theta = CT(x at the output pixels), phi = CT(x_pooled), g = CT(x_pooled), each with a bias.

    Args:
      in_features: C of the input.
      out_features: C of the output.
      inner: channels of theta, phi and g.
      strides: of the output grid.
      pool: how much coarser, per side, the pooled grid is than the output grid.
      dtype: of activations. Products are summed and the softmax is taken in float32.
      rngs: the source of the initial weights.

    Source: Wang et al., "Non-local Neural Networks" (CVPR 2018), embedded Gaussian form. The
    pooling factors per stage are those of the paper's full-image layers.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        inner: int,
        *,
        strides: int = 1,
        pool: int = 1,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        def embedding(strides: int = 1) -> ChannelTransformation:
            return ChannelTransformation(
                in_features, inner, strides=strides, use_bias=True, dtype=dtype, rngs=rngs
            )

        self.theta, self.phi, self.g = embedding(strides), embedding(), embedding()
        self.output = ChannelTransformation(inner, out_features, dtype=dtype, rngs=rngs)
        self.cell = strides * pool  # input pixels per side

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, in_features) -> (B, Ho, Wo, out_features)."""
        pooled = max_pool_cells(x, self.cell)
        theta = self.theta(x)  # (B,Ho,Wo,inner)
        phi, g = self.phi(pooled), self.g(pooled)  # (B,Hp,Wp,inner)
        logits = jnp.einsum("bhwc,byxc->bhwyx", theta, phi, preferred_element_type=jnp.float32)
        flat = logits.reshape(*logits.shape[:3], -1) * theta.shape[-1] ** -0.5
        weights = jax.nn.softmax(flat, axis=-1).astype(g.dtype).reshape(logits.shape)
        return self.output(jnp.einsum("bhwyx,byxc->bhwc", weights, g))


class NonLocalBlock(nnx.Module):
    """x + BatchNorm(NonLocal(x)) with inner = C / 2.

    Args:
      features: C.
      pool: as in `NonLocal`.
      norm: the batch normalisation. With an initial scale of 0 the block starts as the identity.
      dtype: of activations.
      rngs: the source of the initial weights.
    """

    def __init__(
        self,
        features: int,
        *,
        pool: int,
        norm: BatchNorm,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.layer = NonLocal(
            features, features, inner_features(features), pool=pool, dtype=dtype, rngs=rngs
        )
        self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features) -> the same shape."""
        return x + self.norm(self.layer(x))


def inner_features(features: int) -> int:
    """Channels of theta, phi and g: half of the input's, at least one."""
    return max(features // 2, 1)

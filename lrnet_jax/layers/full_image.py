"""Local relation over the full image: the largest aggregation scope of the paper's Table 3."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.checks import check_positive
from lrnet_jax.layers.channel_transformation import channel_transformation, query_or_key
from lrnet_jax.layers.geometric_prior import Prior, fold, make_prior
from lrnet_jax.layers.local_relation import default_scale
from pallas_kernels.spec import Normalization, Similarity, Spec


class FullImageRelation(nnx.Module):
    """A local relation whose window is the whole image, coarsened by max pooling.

    With z = max_pool(x), q = CT(x at the output pixels), k = CT(z), over all pooled cells j:

        w[p, :, g] = softmax over j of ( scale * Phi(q[p, g], k[j, g]) + prior[g, p - j] )
        y[p]       = CT( sum over j of  w[p, j, g] * z[j] )

    A cell's position is its centre, in output pixels; the prior sees the difference to the output
    pixel divided by the size of the output grid.

    Args:
      in_features: C of the input.
      out_features: C of the output.
      strides: of the output grid.
      pool: how much coarser, per side, the pooled grid is than the output grid.
      output_size: (Ho, Wo) that a table is made or folded for; a network fits any size.
      channels_per_group: as in `LocalRelation`, and so are the rest.
      query_key_dim: D.
      similarity: Phi.
      scale: of Phi.
      normalization: "softmax" or "none".
      prior: "network", "table" (over the distinct differences) or "none".
      prior_hidden: hidden width of the prior network, None for G.
      prior_stddev: standard deviation of the prior network's initial output weights.
      dtype: of activations.
      rngs: where the initial weights come from.

    Source: Section 5 of the paper ("full image" in Table 3). The pooled grids of 14, 14, 7 and 7
    cells per side are the paper's; pooling the values too and the positions of cells are our
    reading.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int = 1,
        *,
        pool: int,
        output_size: tuple[int, int] | None = None,
        channels_per_group: int = 8,
        query_key_dim: int = 1,
        similarity: Similarity = "squared_difference",
        scale: float | None = None,
        normalization: Normalization = "softmax",
        prior: Prior = "network",
        prior_hidden: int | None = None,
        prior_stddev: float = 0.01,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if prior == "table" and output_size is None:
            raise ValueError("prior 'table' needs output_size, (Ho, Wo) of the layer; give it")
        for name, number in (
            ("strides", strides),
            ("pool", pool),
            ("channels_per_group", channels_per_group),
            ("query_key_dim", query_key_dim),
        ):
            check_positive(name, number)
        groups = -(-in_features // channels_per_group)
        self.spec = Spec(
            kernel_size=(1, 1),  # not used: the window is the image
            channels_per_group=channels_per_group,
            similarity=similarity,
            scale=default_scale(similarity, query_key_dim) if scale is None else scale,
            normalization=normalization,
        )
        self.strides = strides
        self.pool = pool
        self.query_key_dim = query_key_dim
        self.output_size = output_size
        self.dtype = dtype
        depth = groups * query_key_dim
        self.query = query_or_key(in_features, depth, dtype=dtype, rngs=rngs)
        self.key = query_or_key(in_features, depth, dtype=dtype, rngs=rngs)
        size = output_size or (1, 1)
        distinct = (len(differences(size[0], pool)), len(differences(size[1], pool)))
        self.prior = make_prior(prior, groups, distinct, prior_hidden, prior_stddev, rngs)
        self.output = channel_transformation(in_features, out_features, dtype=dtype, rngs=rngs)

    def geometric_prior(self, ho: int, wo: int) -> jax.Array | None:
        """The prior's logits for a grid, (G, Ho, Wo, Hp, Wp) float32, or None without a prior."""
        if self.prior is None:
            return None
        table = self.prior(differences(ho, self.pool), differences(wo, self.pool))
        rows, columns = cells(ho, self.pool), cells(wo, self.pool)  # (Ho,Hp), (Wo,Wp)
        return table[:, rows[:, None, :, None], columns[None, :, None, :]]

    def fold_prior(self) -> None:
        """Replaces a prior network by its table for `output_size`: same outputs at that size."""
        if self.prior is None:
            return
        if self.output_size is None:
            raise ValueError(
                "a full-image prior folds only for one size; give output_size to the layer, or "
                "image_size to the network"
            )
        ho, wo = self.output_size
        self.prior = fold(self.prior, differences(ho, self.pool), differences(wo, self.pool))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, in_features) -> (B, Ho, Wo, out_features)."""
        s = self.strides
        x = x if self.dtype is None else x.astype(self.dtype)
        pooled = max_pool(x, s * self.pool)
        query, key = self.query(x[:, ::s, ::s] if s > 1 else x), self.key(pooled)
        prior = self.geometric_prior(*query.shape[1:3])
        # The weights of all pairs of pixels are large: computed again in the backward pass.
        aggregate = jax.checkpoint(_aggregate, static_argnums=(0, 1))
        return self.output(aggregate(self.spec, self.query_key_dim, query, key, pooled, prior))


def max_pool(x: jax.Array, window: int) -> jax.Array:
    """Maxima of window x window cells, the last ones partial: (B, H, W, C) -> (B, Hp, Wp, C)."""
    if window == 1:
        return x
    batch, height, width, channels = x.shape
    rows, columns = -(-height // window), -(-width // window)
    border = ((0, 0), (0, rows * window - height), (0, columns * window - width), (0, 0))
    cut = jnp.pad(x, border, constant_values=-jnp.inf)
    return cut.reshape(batch, rows, window, columns, window, channels).max((2, 4))


def differences(size: int, pool: int) -> np.ndarray:
    """The distinct positions of output pixels relative to cell centres on one axis, over `size`."""
    last = -(-size // pool) - 1
    return (np.arange(-last * pool, size, dtype=np.float32) - (pool - 1) / 2) / size


def cells(size: int, pool: int) -> np.ndarray:
    """Which of `differences` belongs to each pixel and cell of one axis, (size, cells)."""
    last = -(-size // pool) - 1
    return np.arange(size)[:, None] - np.arange(last + 1) * pool + last * pool


def _aggregate(
    spec: Spec,
    dim: int,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prior: jax.Array | None,
) -> jax.Array:
    batch, ho, wo, _ = query.shape
    groups = spec.groups(value.shape[-1])
    queries = query.reshape(batch, ho * wo, 1, groups, dim).astype(jnp.float32)
    keys = key.reshape(batch, 1, -1, groups, dim).astype(jnp.float32)
    logits = spec.phi(queries, keys)  # (B,P,J,G)
    if prior is not None:
        logits = logits + jnp.moveaxis(prior.reshape(groups, ho * wo, -1), 0, -1)
    weights = jax.nn.softmax(logits, axis=2) if spec.normalization == "softmax" else logits

    channels = value.shape[-1]
    spare = groups * spec.channels_per_group - channels  # the last group may be partial
    values = jnp.pad(value.astype(jnp.float32), ((0, 0), (0, 0), (0, 0), (0, spare)))
    values = values.reshape(batch, -1, groups, spec.channels_per_group)
    out = jnp.einsum("bpjg,bjgm->bpgm", weights, values)
    return out.reshape(batch, ho, wo, -1)[..., :channels].astype(value.dtype)

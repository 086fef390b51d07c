"""Local relation over the full image, the largest aggregation scope of the paper's Table 3."""

from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lrnet_jax.checks import check_positive
from lrnet_jax.layers.pooling import max_pool_cells
from lrnet_jax.layers.relation import Relation, RelationOptions
from pallas_kernels.spec import Spec


class FullImageRelation(Relation):
    """A local relation whose window is the whole image, coarsened by max pooling.

    With z = max_pool(x), q = CT(x at the output pixels), k = CT(z), over all pooled cells j:

        w[p, :, g] = softmax over j of ( scale * Phi(q[p, g], k[j, g]) + prior[g, p - j] )
        y[p]       = CT( sum over j of  w[p, j, g] * z[j] )

    The position of a cell is its centre, in output pixels. The prior gets the difference to the
    output pixel, divided by the size of the output grid.

    Args:
      in_features: C of the input.
      out_features: C of the output.
      strides: of the output grid.
      pool: how much coarser, per side, the pooled grid is than the output grid.
      output_size: (Ho, Wo) of the prior table, or of the table that the prior is folded into. A
        prior network works at any size.
      rngs: the source of the initial weights.
      **options: all of `RelationOptions`, as in `LocalRelation`. A prior table has a logit for each
        distinct difference.

    Raises:
      TypeError: a stride or size is not an int.
      ValueError: a number is less than 1, or prior is "table" and output_size is None.

    Source: Section 5 of the paper ("full image" in Table 3). The pooled grids of 14, 14, 7 and 7
    cells per side are the paper's. It does not state that values are pooled as well, nor where a
    cell is; both are our reading.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int = 1,
        *,
        pool: int,
        output_size: tuple[int, int] | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[RelationOptions],
    ) -> None:
        if options["prior"] == "table" and output_size is None:
            raise ValueError("prior 'table' needs output_size, (Ho, Wo) of the layer; give it")
        check_positive("pool", pool)
        ho, wo = output_size or (1, 1)  # of no importance to a prior network
        prior_size = (len(differences(ho, pool)), len(differences(wo, pool)))
        super().__init__(in_features, out_features, strides, prior_size, rngs=rngs, **options)
        self.pool = pool
        self.output_size = output_size

    def prior_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct differences of an output of `output_size`.

        Raises:
          ValueError: the layer has no output_size.
        """
        if self.output_size is None:
            raise ValueError(
                "a full-image prior folds only for one size; give output_size to the layer, or "
                "image_size to the network"
            )
        ho, wo = self.output_size
        return differences(ho, self.pool), differences(wo, self.pool)

    def geometric_prior(self, ho: int, wo: int) -> jax.Array | None:
        """The prior's logits for a grid, (G, Ho, Wo, Hp, Wp) float32, or None without a prior."""
        if self.prior is None:
            return None
        logits = self.prior(differences(ho, self.pool), differences(wo, self.pool))
        rows = difference_indices(ho, self.pool)  # (Ho,Hp)
        columns = difference_indices(wo, self.pool)  # (Wo,Wp)
        return logits[:, rows[:, None, :, None], columns[None, :, None, :]]

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, in_features) -> (B, Ho, Wo, out_features)."""
        x = x if self.dtype is None else x.astype(self.dtype)
        pooled = max_pool_cells(x, self.strides * self.pool)
        query, key = self._to_vectors(self.query(x)), self._to_vectors(self.key(pooled))
        prior = self.geometric_prior(*query.shape[1:3])
        spec = Spec(
            kernel_size=(1, 1),  # not used: the window is the image
            channels_per_group=self.channels_per_group,
            similarity=self.similarity,
            scale=self.scale,
            normalization=self.normalization,
        )
        # The weights of all pairs of pixels are large, so the backward pass recomputes them.
        aggregate = jax.checkpoint(_aggregate, static_argnums=0)
        return self.output(aggregate(spec, query, key, pooled, prior))


def differences(size: int, pool: int) -> np.ndarray:
    """The distinct positions of output pixels relative to cell centres, on one axis.

    Args:
      size: number of output pixels.
      pool: output pixels per cell.

    Returns:
      (N,) float32, rising, as fractions of `size`.
    """
    last = -(-size // pool) - 1
    return (np.arange(-last * pool, size, dtype=np.float32) - (pool - 1) / 2) / size


def difference_indices(size: int, pool: int) -> np.ndarray:
    """Which of `differences` belongs to each pixel and cell of one axis, (size, cells) int."""
    last = -(-size // pool) - 1
    return np.arange(size)[:, None] - np.arange(last + 1) * pool + last * pool


def _aggregate(
    spec: Spec, query: jax.Array, key: jax.Array, value: jax.Array, prior: jax.Array | None
) -> jax.Array:
    """Relates every output pixel to every cell.

    Args:
      spec: similarity, scale, normalisation and grouping.
      query: (B, Ho, Wo, G, D).
      key: (B, Hp, Wp, G, D).
      value: (B, Hp, Wp, C).
      prior: (G, Ho, Wo, Hp, Wp) float32, or None.

    Returns:
      (B, Ho, Wo, C) in the dtype of value.
    """
    batch, ho, wo, groups, dim = query.shape
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

"""The layout of the backward pass: (row, column, group) as ONE axis in which a tap is a shift.

A row has Wq columns: Wo outputs, then a gap as wide as a window reaches. The gap is the right
border of its row and the left border of the next. A block of R rows has N = R * Wq * G elements. F
elements in front hold the gap before its first row, and sources need F behind. Channels come before
this axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.xla.geometry import Geometry
from pallas_kernels.xla.stages import pad_image


class Layout(NamedTuple):
    """Sizes of the axis that holds (row, column, group), and moves to and from it."""

    geometry: Geometry

    @property
    def row(self) -> int:
        """Elements of a row: Wq * G."""
        return self.geometry.columns * self.geometry.groups

    @property
    def front(self) -> int:
        """F, elements of the gap in front."""
        return self.geometry.overhang[1] * self.geometry.groups

    @property
    def n(self) -> int:
        """N, elements of a block."""
        return self.geometry.rows * self.row

    @property
    def total(self) -> int:
        """Elements of a block's targets with those in front; its sources have F more."""
        return self.front + self.n

    @property
    def out_rows(self) -> int:
        """Output rows of all blocks."""
        return self.geometry.blocks * self.geometry.rows

    @property
    def source_rows(self) -> int:
        """Hq, rows of one phase of the sources."""
        return self.out_rows + self.geometry.overhang[0]

    def targets(self, x: jax.Array) -> jax.Array:
        """(L,Ho,Wo,G) -> (L, F + blocks*N): zeros in the gaps, in front, in rows to spare."""
        spare = self.out_rows - self.geometry.out_size[0]
        x = jnp.pad(x, ((0, 0), (0, spare), (0, self.geometry.overhang[1]), (0, 0)))
        return jnp.pad(x.reshape(x.shape[0], -1), ((0, 0), (self.front, 0)))

    def sources(self, x: jax.Array) -> jax.Array:
        """(L,H,W,G) -> (row phase, column phase, L, F + Hq*Wq*G + F)."""
        s, hq, wq = self.geometry.spec.stride, self.source_rows, self.geometry.columns
        x = pad_image(self.geometry.spec, x, hq * s, wq * s, axis=1)
        phases = [[x[:, y::s, z::s].reshape(x.shape[0], -1) for z in range(s)] for y in range(s)]
        x = jnp.stack([jnp.stack(of_row) for of_row in phases])
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (self.front, self.front)))

    def from_targets(self, x: jax.Array) -> jax.Array:
        """(L, blocks*N) -> (Ho,Wo,G,L)."""
        (ho, wo), groups = self.geometry.out_size, self.geometry.groups
        x = x.reshape(x.shape[0], self.out_rows, self.geometry.columns, groups)
        return jnp.moveaxis(x[:, :ho, :wo], 0, -1)

    def from_sources(self, x: jax.Array) -> jax.Array:
        """(row phase, column phase, L, Hq*Wq*G) -> (H,W,G,L)."""
        spec, groups = self.geometry.spec, self.geometry.groups
        s, hq, wq = spec.stride, self.source_rows, self.geometry.columns
        height, width = self.geometry.height, self.geometry.width
        x = x.reshape(s, s, -1, hq, wq, groups).transpose(3, 0, 4, 1, 5, 2)
        x = x.reshape(hq * s, wq * s, groups, -1)
        ph, pw = spec.padding
        # Where a stride exceeds the window, input that no tap reads was cropped.
        x = x[ph : ph + height, pw : pw + width]
        return jnp.pad(x, ((0, height - x.shape[0]), (0, width - x.shape[1]), (0, 0), (0, 0)))

"""One local relation as the kernels see it: every number that is known before it runs."""

import dataclasses
import math

import numpy as np

from pallas_kernels.spec import Inputs, Spec

LOG2E = 1.0 / math.log(2.0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Every static number of one local relation.

    Attributes:
      spec: the options.
      batch: B.
      height: H.
      width: W.
      channels: C.
      depth: D.
      has_prior: False for a prior of None.
      dtypes: of query, key and value.
    """

    spec: Spec
    batch: int
    height: int
    width: int
    channels: int
    depth: int
    has_prior: bool
    dtypes: tuple[np.dtype, np.dtype, np.dtype]

    @classmethod
    def of(cls, spec: Spec, inputs: Inputs) -> "Problem":
        """Reads shapes and dtypes from arrays or `jax.ShapeDtypeStruct`s."""
        query, key, value, prior = inputs
        batch, height, width, channels = value.shape
        dtypes = (np.dtype(query.dtype), np.dtype(key.dtype), np.dtype(value.dtype))
        depth = query.shape[-1]
        return cls(spec, batch, height, width, channels, depth, prior is not None, dtypes)

    @property
    def groups(self) -> int:
        """G."""
        return self.spec.groups(self.channels)

    @property
    def out_size(self) -> tuple[int, int]:
        """(Ho, Wo)."""
        return self.spec.output_size(self.height, self.width)

    @property
    def softmax(self) -> bool:
        """Whether weights are normalised."""
        return self.spec.normalization == "softmax"

    @property
    def vector(self) -> int:
        """Channels per memory access.

        At most 16 bytes, and a divisor of C and M: Triton moves anything wider or unaligned through
        shared memory, and a vector must not cross the end of a group.
        """
        size = 16 // self.dtypes[2].itemsize
        return math.gcd(size, math.gcd(self.channels, self.spec.channels_per_group))

    @property
    def chunk(self) -> int:
        """Channels that a lane holds at a time: M, or 8 if the registers cannot hold M."""
        return self.spec.channels_per_group if self.spec.channels_per_group <= 16 else 8

    @property
    def chunks(self) -> int:
        """Chunks per group."""
        return -(-self.spec.channels_per_group // self.chunk)

    @property
    def distance_masks(self) -> bool:
        """Whether a distant key acts as a mask: Phi falls without bound, so its weight is 0."""
        return self.softmax and self.spec.similarity != "multiplication" and self.spec.scale > 0

    def distant_value(self, dtype: np.dtype) -> float:
        """A component so far from every query or key that the weight is 0.

        Its logit still fits float32. A real difference beyond it would overflow to a logit of -inf
        in every implementation. Without `distance_masks` it is 0. For float16 it is inf, because
        real keys reach as far as the largest float16.
        """
        if not self.distance_masks:
            return 0.0
        if dtype == np.float16:
            return math.inf
        reach = 2e38 / (LOG2E * max(self.spec.scale, 1e-30) * self.depth)
        squared = self.spec.similarity == "squared_difference"
        return min(math.sqrt(reach) if squared else reach, 1e38)

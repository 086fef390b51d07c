"""The named problem sizes: one list for tests, benchmark, inspection and comparison.

`NETWORKS` holds every local relation of LR-Net-18, 26, 50 and 101 at 224x224 and of the ablations'
width; `ODD` the options and sizes that the networks do not use.

The channels are those of the parameters. In bfloat16 a network fills the channels inside a block up
to multiples of 8, as cuBLAS needs them, and the local relation is given those. `Shape.as_run` is
what counts where speed or tiles are measured. Numbers are compared with the channels as they are,
where the last group is a partial one.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.spec import Inputs, Spec


@dataclasses.dataclass(frozen=True)
class Shape:
    """One problem: everything but the dtype and the numbers.

    Attributes:
      name: how commands select it, such as `lrnet26/res3_stride2`.
      height: H of key and value.
      width: W of key and value.
      channels: C.
      spec: kernel size, groups, stride and the other options.
      batch: B.
      depth: D, the length of each query and key.
      has_prior: False for a prior of None.
      multiple: in bfloat16 the network fills C up to a multiple of it.
    """

    name: str
    height: int
    width: int
    channels: int
    spec: Spec
    batch: int = 1
    depth: int = 1
    has_prior: bool = True
    multiple: int = 1

    @property
    def groups(self) -> int:
        """G."""
        return self.spec.groups(self.channels)

    @property
    def query(self) -> tuple[int, ...]:
        """(B, Ho, Wo, G, D)."""
        size = self.spec.output_size(self.height, self.width)
        return (self.batch, *size, self.groups, self.depth)

    @property
    def key(self) -> tuple[int, ...]:
        """(B, H, W, G, D)."""
        return (self.batch, self.height, self.width, self.groups, self.depth)

    @property
    def value(self) -> tuple[int, ...]:
        """(B, H, W, C)."""
        return (self.batch, self.height, self.width, self.channels)

    @property
    def prior(self) -> tuple[int, ...] | None:
        """(G, Kh, Kw), or None."""
        return (self.groups, *self.spec.kernel_size) if self.has_prior else None

    @property
    def out(self) -> tuple[int, ...]:
        """(B, Ho, Wo, C)."""
        return (*self.query[:3], self.channels)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `local_relation`."""
        return {field.name: getattr(self.spec, field.name) for field in dataclasses.fields(Spec)}

    def abstract_inputs(self, dtype: Any) -> Inputs:
        """The inputs as `jax.ShapeDtypeStruct`s: their shapes and a dtype, without numbers."""

        def array(size: tuple[int, ...] | None) -> Any:
            return None if size is None else jax.ShapeDtypeStruct(size, jnp.dtype(dtype))

        return Inputs(array(self.query), array(self.key), array(self.value), array(self.prior))

    def as_run(self, dtype: Any) -> "Shape":
        """The problem that a network of this dtype gives to the operator."""
        multiple = self.multiple if jnp.dtype(dtype) == jnp.bfloat16 else 1
        return dataclasses.replace(self, channels=-(-self.channels // multiple) * multiple)

    def with_batch(self, batch: int) -> "Shape":
        """The same problem for another batch size."""
        return dataclasses.replace(self, batch=batch)


def _network(name: str, width: int) -> Iterable[Shape]:
    """res2 to res5 of a network of this width at res2; the first layer of res3 to res5 strides."""
    spec = Spec(kernel_size=(7, 7), channels_per_group=8)
    strided = dataclasses.replace(spec, stride=2)
    yield Shape(f"{name}/res2", 56, 56, width, spec, multiple=8)
    for stage, size in ((3, 28), (4, 14), (5, 7)):
        channels = width * 2 ** (stage - 2)
        yield Shape(f"{name}/res{stage}_stride2", 2 * size, 2 * size, channels, strided, multiple=8)
        yield Shape(f"{name}/res{stage}", size, size, channels, spec, multiple=8)


NETWORKS: tuple[Shape, ...] = (
    Shape("stem", 224, 224, 64, Spec(kernel_size=(7, 7), channels_per_group=8, stride=2)),
    *_network("lrnet18", 136),
    *_network("lrnet26", 101),
    *_network("lrnet50", 100),  # and the ablations of LR-Net-26
    *_network("lrnet101", 103),
)

# Local relations per stage: a basic block has two, a bottleneck one.
_STAGES = {
    "lrnet18": (4, 4, 4, 4),
    "lrnet26": (2, 2, 2, 2),
    "lrnet50": (3, 4, 6, 3),
    "lrnet101": (3, 4, 23, 3),
}
LAYERS: dict[str, dict[str, int]] = {
    network: {
        "stem": 1,
        f"{network}/res2": stages[0],
        **{f"{network}/res{i}_stride2": 1 for i in (3, 4, 5)},
        **{f"{network}/res{i}": stages[i - 2] - 1 for i in (3, 4, 5)},
    }
    for network, stages in _STAGES.items()
}
"""Network -> the shapes of its local relations, and how many it has of each."""

ODD: tuple[Shape, ...] = (
    Shape("odd/partial_group", 9, 11, 20, Spec((7, 7), 8)),
    Shape("odd/fewer_channels_than_group", 6, 5, 3, Spec((3, 3), 8)),
    Shape("odd/kernel_exceeds_image", 3, 4, 10, Spec((7, 9), 4)),
    Shape("odd/single_pixel", 1, 1, 4, Spec((5, 5), 2)),
    Shape("odd/kernel_1x1", 5, 6, 8, Spec((1, 1), 4)),
    Shape("odd/stride3", 11, 13, 12, Spec((5, 5), 4, stride=3)),
    Shape("odd/stride_exceeds_kernel", 13, 10, 6, Spec((3, 3), 2, stride=4)),
    Shape("odd/dilation2", 12, 9, 12, Spec((5, 5), 4, dilation=2)),
    Shape("odd/dilation3_stride2", 15, 14, 8, Spec((3, 5), 4, stride=2, dilation=3)),
    Shape("odd/rectangular", 8, 12, 12, Spec((3, 7), 4)),
    Shape(
        "odd/absolute_difference",
        10,
        9,
        20,
        Spec((5, 5), 8, similarity="absolute_difference", scale=0.7),
    ),
    Shape("odd/multiplication", 10, 9, 20, Spec((5, 5), 8, similarity="multiplication")),
    Shape(
        "odd/multiplication_depth16",
        10,
        9,
        20,
        Spec((7, 7), 8, similarity="multiplication", scale=0.25),
        depth=16,
    ),
    Shape(
        "odd/no_softmax",
        10,
        9,
        20,
        Spec((5, 5), 8, similarity="multiplication", normalization="none"),
    ),
    Shape("odd/no_prior", 10, 9, 20, Spec((5, 5), 8), has_prior=False),
    Shape("odd/depth4", 9, 10, 12, Spec((5, 5), 4), depth=4),
    Shape(
        "odd/no_softmax_depth4",
        9,
        10,
        12,
        Spec((5, 5), 4, normalization="none", similarity="absolute_difference"),
        depth=4,
        has_prior=False,
    ),
    Shape("odd/one_channel_per_group", 10, 9, 12, Spec((5, 5), 1)),
    Shape("odd/one_group", 10, 9, 12, Spec((5, 5), 12)),
    Shape("odd/batch3", 8, 7, 12, Spec((5, 5), 4), batch=3),
    # 8 rows of 4 groups fill a warp: with one warp a program, images come one by one.
    Shape("odd/rounds_of_images", 8, 6, 16, Spec((3, 3), 4), batch=3),
)

SHAPES: dict[str, Shape] = {shape.name: shape for shape in (*NETWORKS, *ODD)}


def select(patterns: str) -> list[Shape]:
    """The named shapes that match any of the comma-separated patterns, in the order of the list."""
    chosen = set()
    for pattern in patterns.split(","):
        matches = fnmatch.filter(SHAPES, pattern)
        if not matches:
            raise ValueError(f"no shape matches {pattern!r}; there are {', '.join(SHAPES)}")
        chosen.update(matches)
    return [shape for name, shape in SHAPES.items() if name in chosen]


def make_inputs(shape: Shape, dtype: Any = jnp.float32, seed: int = 0) -> Inputs:
    """Normal numbers for query, key, value and prior, rounded from the same float64 draws.

    Args:
      shape: the problem.
      dtype: of all four; float64 needs x64 enabled.
      seed: of the draws; equal for every dtype.

    Returns:
      The four arrays of `local_relation`; the prior is None where the shape has none.
    """
    draw = np.random.default_rng(seed).standard_normal
    query, key, value = (
        jnp.asarray(draw(size), dtype) for size in (shape.query, shape.key, shape.value)
    )
    prior = None if shape.prior is None else jnp.asarray(draw(shape.prior), dtype)
    return Inputs(query, key, value, prior)


def make_cotangent(shape: Shape, dtype: Any = jnp.float32, seed: int = 1) -> jax.Array:
    """Normal numbers in the shape of the output, for a backward pass."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape.out), dtype)

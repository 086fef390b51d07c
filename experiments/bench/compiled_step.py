"""The training step of a network, compiled for a GPU that this machine need not have."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench.network_programs import make_training_step
from lrnet_jax.training.devices import AXIS
from lrnet_jax.variant import Variant
from pallas_kernels.tools.cross_compilation import Gpu, absent_mesh, compile_for


def compile_step(variant: Variant, gpu: Gpu, batch_size: int, image_size: int) -> Any:
    """The compiled training step (`jax.stages.Compiled`) on one GPU."""
    _, step, state = make_training_step(variant)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), state)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    mesh = absent_mesh(gpu, AXIS)
    whole, split = jax.P(), jax.P(AXIS)
    on_gpu = jax.shard_map(
        step, mesh=mesh, in_specs=(whole, split), out_specs=(whole, whole), check_vma=False
    )
    return compile_for(gpu, on_gpu, abstract, batch, mesh=mesh)


class LargestArray(NamedTuple):
    """The array of a program that has most elements.

    Attributes:
      kind: its dtype and shape, such as "bf16[128,224,224,64]".
      elements: number of its elements.
    """

    kind: str
    elements: int


def largest_array(text: str) -> LargestArray:
    """The largest array that a compiled program computes, from the text of the program."""
    found = {
        kind: math.prod(int(size) for size in sizes.split(","))
        for kind, sizes in re.findall(r"= (\w+\[([\d,]+)\])", text)
    }
    return LargestArray(*max(found.items(), key=lambda item: item[1]))

"""The training step of a network, compiled for a GPU that this machine need not have."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench import hlo_text
from experiments.bench.network_programs import make_training_step
from experiments.bench.step_time import Cost, step_costs
from lrnet_jax.training.devices import AXIS
from lrnet_jax.variant import Remat, Variant
from pallas_kernels.tools.cross_compilation import Gpu, absent_mesh, compile_for

# An LR-Net with remat=blocks in units of the ResNet of its depth, as the tests hold it on an H100.
MOST_MEMORY = 1.25  # XLA's plan of temporary memory
MOST_TIME = {26: 1.62, 50: 1.5, 101: 1.46}  # by the model of `step_time`, for each depth


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


class PlannedStep(NamedTuple):
    """What is known of a compiled training step without running it.

    Attributes:
      temp_bytes: temporary memory by XLA's plan.
      costs: of each kernel, by the model of `step_time`.
      kernels: number of calls of Pallas kernels.
      distinct: number of different kernels among them, each of which is compiled once.
      largest: array of the program.
      compile_seconds: of processors, to trace, lower and compile it.
    """

    temp_bytes: int
    costs: list[Cost]
    kernels: int
    distinct: int
    largest: LargestArray
    compile_seconds: float

    @property
    def milliseconds(self) -> float:
        """Time of the step by the model, not measured."""
        return 1e3 * sum(cost.seconds for cost in self.costs)


def plan_step(
    variant: Variant, gpu: Gpu, batch_size: int, image_size: int, *, bodies: bool = False
) -> PlannedStep:
    """Compiles a step, with empty kernel bodies: neither memory nor model depends on them.

    Args:
      variant: the network.
      gpu: to compile for.
      batch_size: images.
      image_size: their side.
      bodies: whether to compile the bodies too, for the time that a first start takes.
    """
    from pallas_kernels.tools.empty_kernels import empty_kernels  # it imports Pallas-Triton

    start = _processor_seconds()
    with contextlib.nullcontext() if bodies else empty_kernels():
        compiled = compile_step(variant, gpu, batch_size, image_size)
    seconds, text = _processor_seconds() - start, compiled.as_text()
    kernels = pallas_kernels_of(text)
    return PlannedStep(
        compiled.memory_analysis().temp_size_in_bytes,
        step_costs(hlo_text.parse(text), variant, gpu),
        len(kernels),
        len(set(kernels)),
        largest_array(text),
        seconds,
    )


def pallas_kernels_of(text: str) -> list[str]:
    """What each call of a Pallas kernel in a compiled program runs, equal for equal kernels."""
    return re.findall(r'custom_call_target="__gpu\$xla\.gpu\.triton".*backend_config=(.*)', text)


def _processor_seconds() -> float:
    """Of this process and of the assembler that it starts."""
    return sum(os.times()[:4])


def with_policies(
    variants: Mapping[str, Variant], policies: Iterable[Remat]
) -> dict[tuple[str, Remat], Variant]:
    """The variants by name and remat: each policy, or their own where there is none."""
    policies = tuple(policies)
    return {
        (name, policy): dataclasses.replace(variant, remat=policy)
        for name, variant in variants.items()
        for policy in policies or (variant.remat,)
    }


def peer(name: str, names: Iterable[str]) -> str:
    """The network beside which one is put: its ResNet among `names`, else the first of them."""
    names = list(names)
    resnet = name.partition(":")[0].replace("lrnet", "resnet")
    return resnet if resnet in names else names[0]

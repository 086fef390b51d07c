"""Memory of a whole training step, compiled for a GPU that need not be here.

    python -m experiments.step_memory [--networks=resnet50,lrnet50,lrnet50:xla] [--gpu=h100]
        [--batch_size=128]

`lrnet50:xla` is lrnet50 with that implementation of the local relation. Temporary memory is what
XLA plans for activations and scratch, without parameters, images and cuDNN's workspace; it is
exact, not measured. Needs `pip install lrnet-jax[inspect]`, no GPU.
"""

import argparse
import dataclasses
import math
import re
import time
from typing import Any

from pallas_kernels.tools import cross_compilation

cross_compilation.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import lrnet_jax  # noqa: E402
from experiments.benchmark_networks import training_step  # noqa: E402
from lrnet_jax.training.devices import AXIS  # noqa: E402
from lrnet_jax.variant import Variant  # noqa: E402
from pallas_kernels.tools.cross_compilation import GPUS, Gpu, absent_mesh, compile_for  # noqa: E402


def variant(text: str, dtype: Any) -> Variant:
    """`name` or `name:implementation` as a variant of the zoo."""
    name, _, implementation = text.partition(":")
    return dataclasses.replace(
        lrnet_jax.get_variant(name), dtype=dtype, implementation=implementation or None
    )


def compile_step(variant: Variant, gpu: Gpu, batch_size: int, image_size: int) -> Any:
    """The compiled training step (`jax.stages.Compiled`) on one GPU."""
    _, step, state = training_step(variant)
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


def largest_array(text: str) -> tuple[str, int]:
    """The array with most elements that a compiled program computes, and their number."""
    found = {}
    for kind, sizes in re.findall(r"= (\w+\[([\d,]+)\])", text):
        found[kind] = math.prod(int(size) for size in sizes.split(","))
    return max(found.items(), key=lambda item: item[1])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default="resnet50,lrnet50,lrnet50:xla")
    parser.add_argument("--gpu", default="h100", choices=GPUS)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    reason = cross_compilation.missing()
    if reason:
        parser.error(f"cannot compile for a GPU: {reason}")
    try:
        variants = [variant(text, args.dtype) for text in args.networks.split(",")]
    except ValueError as error:
        parser.error(str(error))
    gpu = GPUS[args.gpu]
    print(f"{gpu.name}, batch {args.batch_size}, {args.image_size}x{args.image_size}, {args.dtype}")
    print(f"{'network':16} {'temporary':>10} {'ratio':>6} {'kernels':>8} {'compile':>8}  largest")
    first = 0
    for name, network in zip(args.networks.split(","), variants, strict=True):
        start = time.time()
        compiled = compile_step(network, gpu, args.batch_size, args.image_size)
        seconds = time.time() - start
        size, text = compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()
        first = first or size
        kind, elements = largest_array(text)
        count = text.count("__gpu$xla.gpu.triton")
        print(
            f"{name:16} {size / 2**30:6.2f} GiB {size / first:6.2f} "
            f"{count:8} {seconds:6.0f} s  {kind} {elements / 1e6:.0f}e6",
            flush=True,
        )


if __name__ == "__main__":
    main()

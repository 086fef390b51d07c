"""Reports the memory of a training step, compiled for a GPU that this machine need not have.

    python -m experiments.step_memory [--networks=resnet50,lrnet50,lrnet50:xla] [--gpu=h100]
        [--batch_size=128]

`lrnet50:xla` is lrnet50 with that implementation of the local relation. Temporary memory is what
XLA plans for activations and scratch, without parameters, images and the workspace of cuDNN. It is
exact, not measured. The kernels of the local relation are compiled without their bodies, on which
the memory does not depend. The command needs NVIDIA's compiler and no GPU:

    make inspect
    JAX_PLATFORMS=cpu PYTHONPATH=build/cuda python -m experiments.step_memory
"""

import time

from absl import flags

from experiments.bench.compiled_step import compile_step, largest_array
from experiments.cli import bench_flags, command_line
from experiments.config import ConfigError
from pallas_kernels.tools import cross_compilation
from pallas_kernels.tools.cross_compilation import GPUS
from pallas_kernels.tools.empty_kernels import empty_kernels


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    bench_flags.define_networks(
        flag_values, "resnet50,lrnet50,lrnet50:xla", batch_size=128, dtype="bfloat16"
    )
    flags.DEFINE_enum("gpu", "h100", list(GPUS), "GPU to compile for.", flag_values=flag_values)


def main(options: flags.FlagValues) -> None:
    """Compiles the step of each network, and prints a line of it.

    Raises:
      ConfigError: the compiler is not installed, or a network does not exist.
    """
    cross_compilation.prepare()
    reason = cross_compilation.missing()
    if reason:
        raise ConfigError(f"cannot compile for a GPU: {reason}")
    variants = bench_flags.chosen_networks(options)
    gpu, side = GPUS[options.gpu], options.image_size
    print(f"{gpu.name}, batch {options.batch_size}, {side}x{side}, {options.dtype}")
    print(f"{'network':16} {'temporary':>10} {'ratio':>6} {'kernels':>8} {'compile':>8}  largest")
    first = 0
    for name, variant in variants.items():
        start = time.perf_counter()
        with empty_kernels():
            compiled = compile_step(variant, gpu, options.batch_size, side)
        seconds = time.perf_counter() - start
        size, text = compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()
        first = first or size
        largest = largest_array(text)
        kernels = text.count("__gpu$xla.gpu.triton")
        print(
            f"{name:16} {size / 2**30:6.2f} GiB {size / first:6.2f} "
            f"{kernels:8} {seconds:6.0f} s  {largest.kind} {largest.elements / 1e6:.0f}e6",
            flush=True,
        )


if __name__ == "__main__":
    command_line.run(main, define_flags)

"""Runs the C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

    make sanitize            (PROBLEMS=500, for each instruction set of this processor)

No Python and no JAX are in the process: the sweeps in C++ beside this file call the kernels with
arrays of their own.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from pallas_kernels.native import build, library
from pallas_kernels.spec import SIMILARITIES
from pallas_kernels.tools.shapes import Shape, select

SWEEPS = {  # of the sources
    "kernels": "sweep.cc", "stem": "stem_sweep.cc", "channel_sums": "channel_sums_sweep.cc",
    "weight_gradients": "weight_gradients_sweep.cc", "row_products": "row_products_sweep.cc",
}  # fmt: skip
SANITIZERS = ("address,undefined", "thread")
FLAGS = {"sse2": "baseline", "baseline": "baseline", "avx2": "avx2", "avx512": "avx512"}


def compile_sweep(file: pathlib.Path, source: str, sanitizer: str, instruction_set: str) -> None:
    """Compiles the sweep of a source with its kernels for one instruction set."""
    sets = {**build.ELSEWHERE, **build.INSTRUCTION_SETS["x86_64"]}
    command = [
        *(build.compiler() or ()), "-std=c++17", "-O1", "-g", "-pthread", "-Wno-psabi",
        "-ffp-contract=fast", "-fno-omit-frame-pointer", f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=all", *sets[FLAGS[instruction_set]],
        "-DINSTRUCTIONS=kernels_under_test", f"-I{build.FOLDER}", f"{build.FOLDER}/{source}.cc",
        str(pathlib.Path(__file__).with_name(SWEEPS[source])), "-o", str(file),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def arguments(shape: Shape, inputs: int = 0) -> list[str]:
    """A shape as the sweep takes it, with values from images of `inputs` channels if there are."""
    spec = shape.spec
    sizes = (
        *shape.value, *shape.query[1:], *spec.kernel_size, spec.channels_per_group, spec.stride,
        spec.dilation, 1, SIMILARITIES.index(spec.similarity), inputs, min(inputs, 1),
    )  # fmt: skip
    softmax = int(spec.normalization == "softmax")
    return [*map(str, sizes), str(softmax), str(spec.scale)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--problems", type=int, default=500)
    options = parser.parse_args()
    reason = library.obstacle()
    if reason is not None:
        sys.exit(reason)
    shapes = select("stem,lrnet50/*,odd/*")
    for instruction_set in library.instruction_sets():
        for sanitizer in SANITIZERS:
            with tempfile.TemporaryDirectory() as folder:
                for source in reversed(SWEEPS):
                    sweep = pathlib.Path(folder) / source
                    compile_sweep(sweep, source, sanitizer, instruction_set)
                    subprocess.run([sweep, str(options.problems), "0"], check=True)
                for shape in shapes:
                    subprocess.run([sweep, *arguments(shape)], check=True)
                subprocess.run([sweep, *arguments(*select("stem"), inputs=3)], check=True)
            print(
                f"{instruction_set}, {sanitizer}: {options.problems} random problems and "
                f"{len(shapes)} shapes are clean and agree with the reference",
                flush=True,
            )


if __name__ == "__main__":
    main()

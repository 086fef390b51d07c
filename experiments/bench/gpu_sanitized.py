"""Runs the kernels once on a few odd shapes, for compute-sanitizer to watch.

compute-sanitizer --tool=racecheck python -m experiments.bench.gpu_sanitized
"""

from experiments.bench.gpu_parts import Setting, compare
from pallas_kernels.tools.shapes import SHAPES

WATCHED = ("odd/partial_group", "odd/dilation3_stride2", "odd/rounds_of_images", "odd/depth4")


def main() -> None:
    """Compares each kernel with the reference on each shape."""
    setting = Setting.of_this_machine(1)
    for name in WATCHED:
        for kernel in setting.kernels(SHAPES[name], "float32"):
            print(name, kernel, compare(SHAPES[name], "float32", kernel)["summary"])


if __name__ == "__main__":
    main()

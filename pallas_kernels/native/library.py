"""Finds and loads the compiled library, and checks that it fits this JAX."""

import ctypes
import functools
import os
import pathlib
import re
from typing import NamedTuple

import jax

from pallas_kernels.native import build

FILE = build.FOLDER / build.LIBRARY

FORWARD = "lrnet_cpu_forward"
BACKWARD = "lrnet_cpu_backward"
IMAGE_FORWARD = "lrnet_cpu_image_forward"
IMAGE_BACKWARD = "lrnet_cpu_image_backward"
STEM_FORWARD = "lrnet_cpu_stem_forward"
STEM_BACKWARD = "lrnet_cpu_stem_backward"
MOMENTS = "lrnet_cpu_moments"
PRODUCTS = "lrnet_cpu_products"
WEIGHT_GRADIENT = "lrnet_cpu_weight_gradient"
ROW_PRODUCT = "lrnet_cpu_row_product"
TARGETS = (
    FORWARD, BACKWARD, IMAGE_FORWARD, IMAGE_BACKWARD, STEM_FORWARD, STEM_BACKWARD,
    MOMENTS, PRODUCTS, WEIGHT_GRADIENT, ROW_PRODUCT,
)  # fmt: skip
REBUILD = "`python -m pallas_kernels.native`"


# What XLA's flag --xla_cpu_max_isa allows, where it is less than the library has.
ALLOWED = {"SSE4_2": ("sse2",), "AVX": ("sse2",), "AVX2": ("avx2", "sse2")}


ALL_THREADS = 2**31 - 1


class Plan(NamedTuple):
    """How the library cuts a problem.

    Attributes:
      blocks: of output rows. The gradient of the prior has a part for each block of each image.
      tasks: pieces of work, which run in any order; fewer if there are few threads.
      forward_memory: float32 numbers that each thread needs.
      backward_memory: likewise.
    """

    blocks: int
    tasks: int
    forward_memory: int
    backward_memory: int


class StemPlan(NamedTuple):
    """How the library cuts a stem.

    Attributes:
      tasks: pieces of work. Consecutive images have equally many, and each has sums of its own.
      forward_memory: float32 numbers that each thread needs.
      backward_memory: likewise.
    """

    tasks: int
    forward_memory: int
    backward_memory: int


class WeightPlan(NamedTuple):
    """How the library cuts the gradient of a kernel.

    Attributes:
      pieces: of the pixels. Each has sums of its own.
      input_blocks: of the kernel.
      output_blocks: of the kernel.
      memory: float32 numbers that each thread needs.
    """

    pieces: int
    input_blocks: int
    output_blocks: int
    memory: int


def obstacle() -> str | None:
    """Why the library cannot be used here, with the mend; None if it can."""
    return _load()[1]


def plan(sizes: tuple[int, ...]) -> Plan:
    """The plan for a problem, whose sizes are those of `Problem` in `problem.h`."""
    numbers = (ctypes.c_int64 * len(Plan._fields))()
    loaded().local_relation_plan((ctypes.c_int64 * len(sizes))(*sizes), numbers)
    return Plan(*numbers)


def stem_plan(sizes: tuple[int, ...]) -> StemPlan:
    """The plan for a stem, whose sizes are those of `Stem` in `stem.h`."""
    numbers = (ctypes.c_int64 * len(StemPlan._fields))()
    loaded().local_relation_stem_plan((ctypes.c_int64 * len(sizes))(*sizes), numbers)
    return StemPlan(*numbers)


def weight_plan(sizes: tuple[int, int, int], threads: int) -> WeightPlan:
    """The plan for the gradient of a kernel, whose sizes are those of `Weights`."""
    numbers = (ctypes.c_int64 * len(WeightPlan._fields))()
    loaded().local_relation_weight_plan(
        (ctypes.c_int64 * len(sizes))(*sizes), ctypes.c_int64(threads), numbers
    )
    return WeightPlan(*numbers)


def channel_sums(sizes: tuple[int, int, int]) -> int:
    """The floats that sums over pixels need; sizes are those of `Pixels` in `channel_sums.h`."""
    return _floats("local_relation_channel_sums", sizes)


def packed_kernel(sizes: tuple[int, int, int]) -> int:
    """The floats of a packed kernel; sizes are those of `Product` in `row_products.h`."""
    return _floats("local_relation_row_product", sizes)


def instruction_sets() -> list[str]:
    """Names of the instruction sets that this processor has and the library knows, best first."""
    return _names(loaded())


def best(here: list[str], xla_flags: str) -> str:
    """The first of the instruction sets that the flags of XLA allow."""
    limit = re.search(r"--xla_cpu_max_isa=(\w+)", xla_flags)
    allowed = ALLOWED.get(limit.group(1) if limit else "", here)
    return next((name for name in here if name in allowed), here[-1])


def use(instruction_set: str, threads: int = ALL_THREADS) -> None:
    """Chooses what all later calls of this process run with, for tests and measurements."""
    _use(loaded(), instruction_set, threads)


def loaded() -> ctypes.CDLL:
    """The library, with its custom calls registered; raises RuntimeError if it cannot be used."""
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"the C++ library cannot be used: {reason}")
    return library


def _use(library: ctypes.CDLL, instruction_set: str, threads: int) -> None:
    chosen = _names(library).index(instruction_set)
    library.local_relation_use(ctypes.c_int64(chosen), ctypes.c_int64(threads))


def _floats(name: str, sizes: tuple[int, ...]) -> int:
    function = loaded()[name]
    function.restype = ctypes.c_int64
    return int(function((ctypes.c_int64 * len(sizes))(*sizes)))


def _names(library: ctypes.CDLL) -> list[str]:
    function = library.local_relation_instruction_set
    function.restype = ctypes.c_char_p
    names: list[str] = []
    while name := function(ctypes.c_int64(len(names))):
        names.append(name.decode())
    return names


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library or the reason why there is none."""
    if not FILE.exists():
        return None, _not_built()
    try:
        library = ctypes.CDLL(str(FILE))
    except OSError as error:
        return None, f"{FILE.name} does not load ({error}); build it here with {REBUILD}"
    reason = _outdated(library) or _other_interface(library)
    if reason is not None:
        return None, reason
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library[name]), platform="cpu")
    _use(library, best(_names(library), os.environ.get("XLA_FLAGS", "")), ALL_THREADS)
    return library, None


def _not_built() -> str:
    missing = build.obstacle()
    if missing is None:
        return f"not built; xla runs. There is a C++ compiler, so run {REBUILD}"
    mend = missing.partition("; ")[2]
    return f"built without a C++ compiler; xla runs. To have it, {mend}, and run {REBUILD}"


def _outdated(library: ctypes.CDLL) -> str | None:
    function = library.local_relation_sources
    function.restype = ctypes.c_char_p
    if function().decode() == build.sources():
        return None
    return f"{FILE.name} was built from other sources; run {REBUILD}"


def _other_interface(library: ctypes.CDLL) -> str | None:
    """XLA keeps its interface compatible within a major version, towards older minor ones."""
    built = (library.local_relation_ffi_major(), library.local_relation_ffi_minor())
    here = _interface(pathlib.Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h")
    if built[0] == here[0] and built[1] <= here[1]:
        return None
    return (
        f"{FILE.name} was built for version {built[0]}.{built[1]} of XLA's foreign function "
        f"interface and jax {jax.__version__} has {here[0]}.{here[1]}; run {REBUILD}"
    )


def _interface(header: pathlib.Path) -> tuple[int, int]:
    """The version of the foreign function interface that a header of jaxlib declares."""
    text = header.read_text()
    major, minor = (
        int(number)
        for part in ("MAJOR", "MINOR")
        for number in re.findall(rf"^#define XLA_FFI_API_{part} (\d+)$", text, re.MULTILINE)
    )
    return major, minor

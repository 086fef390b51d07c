"""Compiles JAX functions for an NVIDIA GPU that is not here, and returns PTX and machine code.

It needs the CUDA plugin of JAX and NVIDIA's assembler and disassembler (`make inspect`: wheels, no
driver). XLA compiles from a description of the GPU. The result is what the GPU would run.
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_kernels.pallas import absent_gpu
from pallas_kernels.platform_switch import compiling_for

INSTALL = "make inspect, and start with JAX_PLATFORMS=cpu PYTHONPATH=build/cuda"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as its data sheet describes it.

    Attributes:
      name: as the driver reports it.
      capability: compute capability (major, minor).
      cores: number of streaming multiprocessors (SMs).
      lanes: float32 multiply-adds per SM and clock.
      clock: GHz, boost.
      bandwidth: of DRAM, bytes per second.
      memory: bytes.
      l2: bytes.
      shared_per_core: shared memory of an SM, bytes.
      shared_per_block: the most shared memory that one block may have, bytes.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    bandwidth: float
    memory: int
    l2: int
    shared_per_core: int
    shared_per_block: int

    @property
    def compute_capability(self) -> float:
        """`capability` as one number, such as 9.0."""
        major, minor = self.capability
        return major + minor / 10

    @property
    def description(self) -> str:
        """The text of XLA's `GpuTargetConfigProto`."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared_per_core}
              shared_memory_per_block_optin: {self.shared_per_block}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth:.0f} device_memory_size: {self.memory}
              l2_cache_size: {self.l2}
              cuda_compute_capability {{ major: {major} minor: {minor} }}
            }}
            platform_name: "CUDA" device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
            runtime_version {{ major: 12 minor: 9 patch: 0 }}
        """


# H100 and H200: https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs
GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 2.039e12, 80 << 30, 40 << 20,
        167936, 166912,
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 3.352e12, 80 << 30, 50 << 20,
        233472, 232448,
    ),
    "h200": Gpu(
        "NVIDIA H200", (9, 0), 132, 128, 1.98, 4.8e12, 141 << 30, 50 << 20,
        233472, 232448,
    ),
    "b200": Gpu(
        "NVIDIA B200", (10, 0), 148, 128, 1.965, 8.0e12, 180 << 30, 126 << 20,
        233472, 232448,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One compiled kernel.

    Attributes:
      name: of its entry point.
      ptx: its PTX.
      sass: its machine code, disassembled.
      grid: number of blocks.
      warps: per block.
      registers: per thread.
      spills: bytes of spill stores and loads per thread.
      shared: bytes of shared memory per block.
    """

    name: str
    ptx: str
    sass: str
    grid: int
    warps: int
    registers: int
    spills: int
    shared: int

    def resident_warps(self, gpu: Gpu) -> int:
        """Warps that fit an SM at a time, by registers, shared memory and the limits of an SM."""
        per_block = -(-self.registers * 32 // 256) * 256 * self.warps
        blocks = min(65536 // per_block, 32, 64 // self.warps)
        if self.shared:  # the driver takes 1 KiB of each block
            blocks = min(blocks, gpu.shared_per_core // (self.shared + 1024))
        return blocks * self.warps


def missing(tools: Sequence[str] = ("ptxas", "nvdisasm")) -> str | None:
    """Why nothing can be compiled here with these tools of NVIDIA, or None."""
    version = "cuda12" if _find_spec("jax_plugins.xla_cuda12") else "cuda13"
    if not _find_spec(f"jax_plugins.xla_{version}"):
        return f"the CUDA plugin of JAX is not installed; {INSTALL}"
    for tool in tools:
        if _tool(tool) is None:
            return f"{tool} was not found; {INSTALL}"
    return None


def prepare() -> None:
    """Sets the environment so that the CUDA plugin loads without a GPU. Call before JAX starts."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Otherwise half of the time goes into the names of a stack trace that nobody reads.
    os.environ.setdefault("LLVM_DISABLE_SYMBOLIZATION", "1")


def absent_mesh(gpu: Gpu, axis: str = "gpu") -> jax.sharding.Mesh:
    """A mesh of one GPU that is not here, to compile for."""
    from jax.experimental import topologies

    jax.devices("cpu")  # discovers the plugins
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=gpu.description, topology="1x1x1"
    )
    return jax.sharding.Mesh(np.array(topology.devices), (axis,))


def compile_for(
    gpu: Gpu,
    function: Callable[..., Any],
    *avals: Any,
    mesh: jax.sharding.Mesh | None = None,
    forbid_spills: bool = False,
    dump: str | None = None,
) -> Any:
    """The compiled program (`jax.stages.Compiled`) of a function for a GPU that is not here.

    Args:
      gpu: the GPU.
      function: of arrays.
      *avals: `jax.ShapeDtypeStruct` trees.
      mesh: from `absent_mesh`, if the function refers to one.
      forbid_spills: whether a kernel that spills registers is an error.
      dump: a folder for XLA's dump, which has PTX and launch dimensions.
    """
    mesh = mesh or absent_mesh(gpu)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    avals = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), avals)
    # Without autotuning, XLA's own kernels have no tiles for some matrix products. cuBLAS runs all.
    options: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    if forbid_spills:
        options["xla_gpu_fail_ptx_compilation_on_register_spilling"] = True
    if dump is not None:
        options |= {"xla_dump_to": dump, "xla_dump_emitter_re": ".*"}
    with absent_gpu(mesh.abstract_mesh), compiling_for(gpu.compute_capability):
        lowered = jax.jit(function).trace(*avals).lower(lowering_platforms=("cuda",))
    return lowered.compile(compiler_options=options)


def kernels(
    gpu: Gpu, function: Callable[..., Any], *avals: Any, forbid_spills: bool = False
) -> list[Kernel]:
    """Compiles a function and disassembles every kernel of it, those that XLA wrote included."""
    with tempfile.TemporaryDirectory() as folder:
        compile_for(gpu, function, *avals, forbid_spills=forbid_spills, dump=folder)
        dump = pathlib.Path(folder)
        launches = _launches(dump)
        return [
            assemble(name, path.read_text(), **launches[name]._asdict())
            for path in sorted(dump.glob("*.ptx"))
            for name in re.findall(r"\.entry (\w+)\(", path.read_text())
            if name in launches
        ]


class _Launch(NamedTuple):
    """How a kernel is started: blocks, warps per block, bytes of shared memory per block."""

    grid: int
    warps: int
    shared: int


def _launches(dump: pathlib.Path) -> dict[str, _Launch]:
    """The launch of each kernel in XLA's dump, by the name of its entry point."""
    line = re.compile(
        r"(\S+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), 1, 1\]\s+"
        r"shared_memory: (\d+) bytes"
    )
    found = {}
    for path in dump.glob("*thunk_sequence.txt"):
        for name, *numbers in line.findall(path.read_text()):
            x, y, z, threads, shared = map(int, numbers)
            found[name] = _Launch(x * y * z, threads // 32, shared)
    return found


def assemble(name: str, ptx: str, *, grid: int, warps: int, shared: int) -> Kernel:
    """Assembles and disassembles a kernel.

    Args:
      name: of its entry point.
      ptx: the text.
      grid: number of blocks.
      warps: per block.
      shared: bytes of shared memory per block.
    """
    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    if target is None:
        raise RuntimeError(f"{name}: no .target line in its PTX")
    with tempfile.TemporaryDirectory() as folder:
        path, cubin = pathlib.Path(folder) / "kernel.ptx", pathlib.Path(folder) / "kernel.cubin"
        path.write_text(ptx)
        log = _run("ptxas", "-v", f"-arch={target[1]}", "-O3", str(path), "-o", str(cubin))
        sass = _run("nvdisasm", "-c", str(cubin))

    def figure(pattern: str) -> int:
        return sum(int(x) for x in re.findall(pattern, log))

    return Kernel(
        name=name,
        ptx=ptx,
        sass=sass,
        grid=grid,
        warps=warps,
        registers=figure(r"Used (\d+) registers"),
        spills=figure(r"(\d+) bytes spill (?:stores|loads)"),
        shared=shared,
    )


def _run(tool: str, *arguments: str) -> str:
    path = _tool(tool)
    if path is None:
        raise RuntimeError(f"{tool} was not found; {INSTALL}")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr or done.stdout}")
    return done.stdout + done.stderr


def _tool(name: str) -> str | None:
    """NVIDIA's tool in the wheels of this environment, else on PATH."""
    for folder in sys.path:
        for path in pathlib.Path(folder or ".").glob(f"nvidia/c*/bin/{name}"):
            return str(path)
    return shutil.which(name)


def _find_spec(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False

"""Times compiled programs in turn, and says what a program needs."""

import contextlib
import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from pallas_kernels.platform_switch import current_platform


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call of a program over several runs: least, quartiles and median.

    `cpu` is the median of the seconds that processors spent on it, all threads together. On a busy
    machine it varies less.
    """

    least: float
    lower: float
    median: float
    upper: float
    cpu: float

    @classmethod
    def of(cls, seconds: Sequence[float], cpu_seconds: Sequence[float]) -> "Timing":
        """Summarises the seconds of at least two runs."""
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(min(seconds), lower, median, upper, statistics.median(cpu_seconds))


def interleave(
    programs: Mapping[str, Callable[[], Any]],
    rounds: int = 20,
    calls: int | None = None,
    *,
    warm: bool = False,
) -> dict[str, Timing]:
    """Times programs in turn: one run of each per round, after one round that is not counted.

    Args:
      programs: name to a function without arguments that returns JAX arrays. Compile before.
      rounds: how many runs of each are counted, at least 2.
      calls: calls per run, all dispatched before the first is awaited. None for 10 on a GPU,
        where starting a program may take longer than running it, and 1 elsewhere.
      warm: whether a call of the same program, which is not counted, comes before each run. It is
        for programs of several libraries: the threads of one spin for a while after its work, and
        take processor time from what another library runs next.

    Returns:
      Name to the timing.
    """
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2 for a median with spread, got {rounds}")
    calls = calls or (10 if current_platform() == "cuda" else 1)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    with _without_collector():
        for _ in range(rounds + 1):
            for name, program in programs.items():
                if warm:
                    jax.block_until_ready(program())
                start, cpu_start = time.perf_counter(), time.process_time()
                jax.block_until_ready([program() for _ in range(calls)])
                elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
                seconds[name].append((elapsed / calls, cpu / calls))
    return {name: Timing.of(*zip(*runs[1:], strict=True)) for name, runs in seconds.items()}


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector walks over all objects of JAX's traces, in whichever program it starts."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function with its arguments.

    Attributes:
      run: calls it.
      temp_bytes: temporary memory while it runs, beyond arguments and results.
      compile_seconds: tracing, lowering and compiling.
      compile_cpu: seconds that processors spent on that, all threads together.
    """

    run: Callable[[], Any]
    temp_bytes: int
    compile_seconds: float
    compile_cpu: float


def prepare(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compiles a function for these arguments."""
    start, cpu_start = time.perf_counter(), time.process_time()
    # A new function, because jit would return the trace of an earlier call.
    compiled = jax.jit(lambda *args: function(*args)).lower(*arguments).compile()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError(f"the {jax.default_backend()} backend does not report its memory")
    return Program(lambda: compiled(*arguments), memory.temp_size_in_bytes, seconds, cpu)


def machine() -> dict[str, str | int]:
    """The machine that the figures belong to."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
    }

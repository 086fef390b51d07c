"""Time and memory of the local relation, per shape, beside the layers it stands in for.

    python -m pallas_kernels.tools.benchmark [--shapes='lrnet26/*']
        [--implementations=xla,dense_3x3]

Contestants: every implementation that runs here, a dense 3x3 and a depthwise 7x7 convolution of the
same width and stride. They are compiled ahead of time and run in turn within one process, so that
a busy machine slows all of them alike: trust the ratios, not the milliseconds. Ratios are to the
first contestant. Temporary memory is what the compiler reports, without inputs and outputs. On a
GPU each run is several calls in a row, so that what counts is the time of the device. Where all
local relations of a network were measured, their sums follow (1x1 convolutions and the rest of a
network: `python -m experiments.benchmark_networks`).

    python -m pallas_kernels.tools.benchmark --tune [--shapes='lrnet50/*'] [--batch=128]

measures tiles of the GPU kernels instead and keeps the fastest in `tiles.json`, per device.
"""

import argparse
import dataclasses
import fnmatch
import functools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.api import implementations, local_relation
from pallas_kernels.tools.shapes import LAYERS, SHAPES, Shape, make_cotangent, make_inputs

DEFAULT_SHAPES = "stem,lrnet26/*"
CONVOLUTIONS = ("dense_3x3", "depthwise_7x7")
PASSES = ("forward", "forward_backward")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one program over several runs: least, quartiles and median."""

    least: float
    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Summarises the seconds of at least two runs."""
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(min(seconds), lower, median, upper)


def interleave(
    programs: Mapping[str, Callable[[], Any]], rounds: int = 20, calls: int | None = None
) -> dict[str, Timing]:
    """Times programs in turn: one run of each per round, after one round that is not counted.

    Args:
      programs: name to a function without arguments that returns JAX arrays. Compile before.
      rounds: how many runs of each are counted, at least 2.
      calls: calls per run, all dispatched before the first is awaited; None: 10 on a GPU, where
        starting a program may take longer than running it, else 1.

    Returns:
      Name to the timing.
    """
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2 for a median with spread, got {rounds}")
    calls = calls or (10 if jax.default_backend() in ("gpu", "cuda") else 1)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready([program() for _ in range(calls)])
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: Timing.of(runs[1:]) for name, runs in seconds.items()}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function with its arguments.

    Attributes:
      run: calls it.
      temp_bytes: temporary memory while it runs, beyond arguments and results.
      compile_seconds: tracing, lowering and compiling.
    """

    run: Callable[[], Any]
    temp_bytes: int
    compile_seconds: float


def prepare(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compiles a function for these arguments."""
    start = time.perf_counter()
    # A fresh function: jit would hand back the traces of an earlier call.
    compiled = jax.jit(lambda *args: function(*args)).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError(f"the {jax.default_backend()} backend does not report its memory")
    return Program(lambda: compiled(*arguments), memory.temp_size_in_bytes, seconds)


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
    }


def contestants(
    shape: Shape, dtype: Any, names: Sequence[str] | None
) -> dict[str, tuple[Callable[..., jax.Array], tuple[jax.Array | None, ...]]]:
    """Name to (function, its arrays, all to be differentiated) in the order of names."""
    inputs = make_inputs(shape, dtype)
    found: dict[str, tuple[Callable, tuple]] = {}
    for name in check_names(shape, names):
        if name in CONVOLUTIONS:
            found[name] = _convolution(shape, inputs[2], depthwise=name == "depthwise_7x7")
        else:
            run = functools.partial(local_relation, **shape.options, implementation=name)
            found[name] = (run, inputs)
    return found


def check_names(shape: Shape, names: Sequence[str] | None) -> Sequence[str]:
    """The names, all that run here for None; raises ValueError for one that cannot."""
    arrays: Any = [
        None if size is None else jax.ShapeDtypeStruct(size, jnp.float32)
        for size in (shape.query, shape.key, shape.value, shape.prior)
    ]
    support = implementations(*arrays, **shape.options)
    if names is None:  # an interpreter's time tells nothing
        running = [name for name, (runs, _) in support.items() if runs and "interpret" not in name]
        return [*running, *CONVOLUTIONS]
    for name in names:
        if name not in (*support, *CONVOLUTIONS):
            known = ", ".join((*support, *CONVOLUTIONS))
            raise ValueError(f"implementation must be one of {known}; got {name!r}")
        if name in support and not support[name].runs:
            raise ValueError(f"{name} cannot run {shape.name}: {support[name].reason}")
    return names


def _convolution(shape: Shape, value: jax.Array, depthwise: bool) -> tuple[Callable, tuple]:
    width = shape.channels
    size = (7, 7, 1, width) if depthwise else (3, 3, width, width)
    run = functools.partial(
        lax.conv_general_dilated,
        window_strides=(shape.spec.stride, shape.spec.stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=width if depthwise else 1,
    )
    return run, (value, jnp.ones(size, value.dtype))


def measure(
    shape: Shape, names: Sequence[str] | None = None, dtype: Any = jnp.float32, rounds: int = 20
) -> list[dict[str, Any]]:
    """One record for each contestant and pass of a shape.

    Args:
      shape: the problem.
      names: implementations and convolutions; None for all that run here.
      dtype: of inputs and convolution kernels.
      rounds: runs of each.

    Returns:
      Records: shape, name, direction, seconds (least, lower, median, upper), temp_bytes and
      compile_seconds.
    """
    cotangent = make_cotangent(shape, dtype)

    records = []
    for direction in PASSES:
        programs = {}
        for name, (function, arrays) in contestants(shape, dtype, names).items():
            if direction == "forward":
                programs[name] = prepare(function, *arrays)
            else:
                programs[name] = prepare(_with_gradients(function), cotangent, *arrays)
        timings = interleave({name: program.run for name, program in programs.items()}, rounds)
        for name, program in programs.items():
            records.append(
                {
                    "shape": shape.name,
                    "name": name,
                    "direction": direction,
                    "seconds": dataclasses.asdict(timings[name]),
                    "temp_bytes": program.temp_bytes,
                    "compile_seconds": program.compile_seconds,
                }
            )
    return records


def _with_gradients(function: Callable) -> Callable:
    def run(cotangent: Any, *arrays: Any) -> Any:
        out, vjp = jax.vjp(function, *arrays)
        return out, vjp(cotangent)

    return run


def table(records: Iterable[dict[str, Any]]) -> str:
    """Records as text; ratios to the first contestant of each shape and pass."""
    lines = []
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        base = first.setdefault((record["shape"], record["direction"]), record)
        seconds, temp = record["seconds"], record["temp_bytes"]
        spread = " ".join(f"{1e3 * seconds[x]:.2f}" for x in ("least", "lower", "upper"))
        ratio = seconds["median"] / base["seconds"]["median"]
        temp_ratio = f"{temp / base['temp_bytes']:7.3f}" if base["temp_bytes"] else "      -"
        lines.append(
            f"{record['shape']:<24} {record['direction']:<16} {record['name']:<14}"
            f" {ratio:7.3f} {1e3 * seconds['median']:9.2f} ms [{spread}]"
            f" {temp_ratio} {temp / 2**20:8.1f} MiB {record['compile_seconds']:6.2f} s"
        )
    return "\n".join(lines)


def whole_networks(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of all local relations of a network together, where each of its shapes was measured.

    Seconds are sums over the layers, also those of the quartiles (so their spread is an upper
    bound); temporary memory is that of the layer with most.
    """
    found = []
    for network, layers in LAYERS.items():
        of = {(r["name"], r["direction"], r["shape"]): r for r in records if r["shape"] in layers}
        for direction in PASSES:
            names = [name for name, way, shape in of if way == direction and shape == "stem"]
            for name in names:
                parts = [(of.get((name, direction, shape)), n) for shape, n in layers.items()]
                known = [(part, n) for part, n in parts if part is not None]
                if len(known) < len(parts):
                    continue
                found.append(
                    {
                        "shape": f"{network}, {sum(layers.values())} layers",
                        "name": name,
                        "direction": direction,
                        "seconds": {
                            key: sum(n * part["seconds"][key] for part, n in known)
                            for key in known[0][0]["seconds"]
                        },
                        "temp_bytes": max(part["temp_bytes"] for part, _ in known),
                        "compile_seconds": sum(part["compile_seconds"] for part, _ in known),
                    }
                )
    return found


def select(patterns: str) -> list[Shape]:
    """The named shapes that match any of the comma-separated patterns, in the order of the list."""
    chosen = set()
    for pattern in patterns.split(","):
        matches = fnmatch.filter(SHAPES, pattern)
        if not matches:
            raise ValueError(f"no shape matches {pattern!r}; there are {', '.join(SHAPES)}")
        chosen.update(matches)
    return [shape for name, shape in SHAPES.items() if name in chosen]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.tools.benchmark", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shapes", default=DEFAULT_SHAPES, help="names or patterns, with commas")
    parser.add_argument("--implementations", help="names, with commas; all that run by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tune", action="store_true", help="measure tiles of the GPU kernels")
    parser.add_argument("--json", metavar="FILE", help="also write the records there")
    options = parser.parse_args(arguments)
    names = options.implementations.split(",") if options.implementations else None
    try:
        shapes = [shape.with_batch(options.batch) for shape in select(options.shapes)]
        for shape in shapes:
            check_names(shape, names)
        if options.rounds < 2:
            raise ValueError(f"--rounds must be at least 2, got {options.rounds}")
    except ValueError as error:
        parser.error(str(error))

    if options.tune:
        # Not above: the other contestants also run where JAX has no Pallas-Triton any more.
        from pallas_kernels.tools.tune import tune

        try:
            tune(shapes, jnp.dtype(options.dtype), options.rounds)
        except RuntimeError as error:
            parser.error(str(error))
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(
        f"{'shape':<24} {'pass':<16} {'contestant':<14} {'ratio':>7} {'median':>9}    [least lower"
        " upper quartile], temporary memory: ratio, size; compile"
    )
    records = []
    for shape in shapes:
        of_shape = measure(shape, names, options.dtype, options.rounds)
        print(table(of_shape), flush=True)
        records += of_shape
    networks = whole_networks(records)
    if networks:
        print(table(networks))
    if options.json:
        result = {"machine": machine(), **vars(options), "records": records, "networks": networks}
        with pathlib.Path(options.json).open("w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()

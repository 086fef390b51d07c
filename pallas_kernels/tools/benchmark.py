"""Time and memory of the local relation, per shape, beside the layers that it replaces.

    python -m pallas_kernels.benchmark [--shapes='lrnet26/*'] [--implementations=xla,dense_3x3]

It compares every implementation that runs here, a dense 3x3 and a depthwise 7x7 convolution of the
same width and stride. They are compiled ahead of time and run in turn within one process, so that
a busy machine slows all of them alike: trust the ratios, not the milliseconds. Ratios are to the
first row. `ms` is the median, `CPU ms` that of the time of all threads, and `MiB` the temporary
memory that the compiler reports, without inputs and outputs. On a GPU each run is several calls in
a row, so that the time of the device counts. Where all local relations of a network were measured,
their sums follow. `python -m experiments.benchmark_networks` measures whole networks, with their
1x1 convolutions and the rest.

    python -m pallas_kernels.benchmark --tune [--implementations=pallas,jax_triton]
        [--shapes='lrnet50/*'] [--batch=128]

measures tiles of the GPU kernels instead and keeps the fastest in `tiles.json`, per device and
implementation.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.api import implementations, local_relation
from pallas_kernels.tools.kernel_programs import MODULES as KERNEL_MODULES
from pallas_kernels.tools.shapes import LAYERS, Shape, make_cotangent, make_inputs, select
from pallas_kernels.tools.timing import Program, Timing, interleave, machine, prepare
from pallas_kernels.tools.tune import tune

DEFAULT_SHAPES = "stem,lrnet26/*"
CONVOLUTIONS = ("dense_3x3", "depthwise_7x7")
PASSES = ("forward", "forward_backward")


class Contestant(NamedTuple):
    """A function to measure, and its arrays: all are differentiated."""

    function: Callable[..., jax.Array]
    arrays: Sequence[jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured of one contestant.

    Attributes:
      shape: name of the problem.
      name: of the contestant.
      direction: one of `PASSES`.
      seconds: of one call.
      temp_bytes: temporary memory.
      compile_seconds: tracing, lowering and compiling.
    """

    shape: str
    name: str
    direction: str
    seconds: Timing
    temp_bytes: int
    compile_seconds: float


def contestants(shape: Shape, dtype: Any, names: Sequence[str] | None) -> dict[str, Contestant]:
    """The contestants by name, in the order of names."""
    inputs = make_inputs(shape, dtype)
    found = {}
    for name in check_names(shape, names):
        if name in CONVOLUTIONS:
            found[name] = _convolution(shape, inputs.value, depthwise=name == "depthwise_7x7")
        else:
            run = functools.partial(local_relation, **shape.options, implementation=name)
            found[name] = Contestant(run, inputs)
    return found


def check_names(shape: Shape, names: Sequence[str] | None) -> Sequence[str]:
    """The names, or all that run here for None; raises ValueError for one that cannot."""
    support = implementations(*shape.abstract_inputs(jnp.float32), **shape.options)
    if names is None:  # the time of an interpreter is of no interest
        running = [name for name, (runs, _) in support.items() if runs and "interpret" not in name]
        return [*running, *CONVOLUTIONS]
    for name in names:
        if name not in (*support, *CONVOLUTIONS):
            known = ", ".join((*support, *CONVOLUTIONS))
            raise ValueError(f"implementation must be one of {known}; got {name!r}")
        if name in support and not support[name].runs:
            raise ValueError(f"{name} cannot run {shape.name}: {support[name].reason}")
    return names


def _convolution(shape: Shape, value: jax.Array, depthwise: bool) -> Contestant:
    width = shape.channels
    size = (7, 7, 1, width) if depthwise else (3, 3, width, width)
    run = functools.partial(
        lax.conv_general_dilated,
        window_strides=(shape.spec.stride, shape.spec.stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=width if depthwise else 1,
    )
    return Contestant(run, (value, jnp.ones(size, value.dtype)))


def measure(
    shape: Shape, names: Sequence[str] | None = None, dtype: Any = jnp.float32, rounds: int = 20
) -> list[Record]:
    """One record for each contestant and pass of a shape.

    Args:
      shape: the problem.
      names: implementations and convolutions; None for all that run here.
      dtype: of inputs and convolution kernels.
      rounds: runs of each.
    """
    records = []
    for direction in PASSES:
        programs = {
            name: _compile(contestant, direction, make_cotangent(shape, dtype))
            for name, contestant in contestants(shape, dtype, names).items()
        }
        timings = interleave({name: program.run for name, program in programs.items()}, rounds)
        records += [
            Record(
                shape.name,
                name,
                direction,
                timings[name],
                program.temp_bytes,
                program.compile_seconds,
            )
            for name, program in programs.items()
        ]
    return records


def _compile(contestant: Contestant, direction: str, cotangent: jax.Array) -> Program:
    function, arrays = contestant
    if direction == "forward":
        return prepare(function, *arrays)

    def with_gradients(cotangent: jax.Array, *arrays: jax.Array | None) -> Any:
        out, vjp = jax.vjp(function, *arrays)
        return out, vjp(cotangent)

    return prepare(with_gradients, cotangent, *arrays)


def table(records: Iterable[Record]) -> str:
    """Records as text, under a heading for each shape and pass; ratios are to its first row."""
    lines = []
    first: dict[tuple[str, str], Record] = {}
    for record in records:
        if (record.shape, record.direction) not in first:
            first[record.shape, record.direction] = record
            title = f"{record.shape}, {record.direction.replace('_', ' and ')}"
            lines.append(
                f"{title:<40} {'ms':>8} {'quartiles':>15} {'ratio':>6} {'CPU ms':>8} {'ratio':>6}"
                f" {'MiB':>7} {'ratio':>6} {'compile':>8}"
            )
        lines.append(_row(record, first[record.shape, record.direction]))
    return "\n".join(lines)


def _row(record: Record, base: Record) -> str:
    seconds, temp = record.seconds, record.temp_bytes
    quartiles = f"{1e3 * seconds.lower:.2f}-{1e3 * seconds.upper:.2f}"
    cpu_ratio = seconds.cpu / base.seconds.cpu if base.seconds.cpu else 1.0
    temp_ratio = f"{temp / base.temp_bytes:6.3f}" if base.temp_bytes else "     -"
    return (
        f"  {record.name:<38} {1e3 * seconds.median:8.2f} {quartiles:>15}"
        f" {seconds.median / base.seconds.median:6.3f}"
        f" {1e3 * seconds.cpu:8.2f} {cpu_ratio:6.3f}"
        f" {temp / 2**20:7.1f} {temp_ratio} {record.compile_seconds:6.2f} s"
    )


def whole_networks(records: Sequence[Record]) -> list[Record]:
    """Records of all local relations of a network together, where each of its shapes was measured.

    Seconds are sums over the layers. The sums of quartiles are an upper bound of the spread.
    Temporary memory is that of the layer with most.
    """
    measured = {(r.name, r.direction, r.shape): r for r in records}
    contestants = dict.fromkeys((r.name, r.direction) for r in records if r.shape == "stem")
    found = []
    for network, layers in LAYERS.items():
        for direction in PASSES:
            for name in (name for name, way in contestants if way == direction):
                if all((name, direction, shape) in measured for shape in layers):
                    parts = {measured[name, direction, shape]: n for shape, n in layers.items()}
                    title = f"{network}, {sum(layers.values())} layers"
                    found.append(_sum(title, name, direction, parts))
    return found


def _sum(title: str, name: str, direction: str, layers: dict[Record, int]) -> Record:
    seconds = {
        field.name: sum(n * getattr(layer.seconds, field.name) for layer, n in layers.items())
        for field in dataclasses.fields(Timing)
    }
    return Record(
        title,
        name,
        direction,
        Timing(**seconds),
        max(layer.temp_bytes for layer in layers),
        sum(layer.compile_seconds for layer in layers),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = options.implementations.split(",") if options.implementations else None
    try:
        shapes = [
            shape.as_run(options.dtype).with_batch(options.batch)
            for shape in select(options.shapes)
        ]
        for shape in shapes:
            check_names(shape, names)
        if options.rounds < 2:
            raise ValueError(f"--rounds must be at least 2, got {options.rounds}")
    except ValueError as error:
        parser.error(str(error))
    if options.tune:
        try:
            for name in _tuned(shapes, names):
                tune(shapes, jnp.dtype(options.dtype), options.rounds, implementation=name)
        except (RuntimeError, ValueError) as error:
            parser.error(str(error))
    else:
        _compare(shapes, names, options)


def _tuned(shapes: Sequence[Shape], names: Sequence[str] | None) -> Sequence[str]:
    """The implementations to tune: the named ones, or those that run all shapes here."""
    for name in names or ():
        if name not in KERNEL_MODULES:
            raise ValueError(f"--tune takes {' and '.join(KERNEL_MODULES)}, got {name!r}")
    if names:
        return names
    supports = [implementations(*s.abstract_inputs(jnp.float32), **s.options) for s in shapes]
    running = [name for name in KERNEL_MODULES if all(found[name].runs for found in supports)]
    return running or list(KERNEL_MODULES)  # the first one says why it cannot


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shapes", default=DEFAULT_SHAPES, help="names or patterns, with commas")
    parser.add_argument("--implementations", help="names, with commas; all that run by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tune", action="store_true", help="measure tiles of the GPU kernels")
    parser.add_argument("--json", metavar="FILE", help="also write the records there")
    return parser


def _compare(
    shapes: Sequence[Shape], names: Sequence[str] | None, options: argparse.Namespace
) -> None:
    """Measures and prints all contestants; writes `--json`."""
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    records = []
    for shape in shapes:
        of_shape = measure(shape, names, options.dtype, options.rounds)
        print(f"\n{table(of_shape)}", flush=True)
        records += of_shape
    networks = whole_networks(records)
    if networks:
        print(f"\n{table(networks)}")
    if options.json:
        result = {
            "machine": machine(),
            **vars(options),
            "records": [dataclasses.asdict(record) for record in records],
            "networks": [dataclasses.asdict(record) for record in networks],
        }
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

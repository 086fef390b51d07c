"""Measures input pipelines: images per second, and per second of CPU time."""

import contextlib
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from experiments.bench import input_pipelines
from experiments.bench.process_use import cpu_seconds, memory_bytes, wait_until_idle
from experiments.report.table import Table
from lrnet_jax.data.examples import Examples

_POINTS = 20  # of the memory curve


class Rates(NamedTuple):
    """What a pipeline delivered in each round.

    Attributes:
      pipeline: its name.
      per_second: images per second.
      per_cpu_second: images per second of CPU time.
    """

    pipeline: str
    per_second: list[float]
    per_cpu_second: list[float]


def measure_rates(
    split: Examples,
    names: Sequence[str],
    *,
    batch_size: int,
    workers: int,
    batches: int,
    rounds: int,
) -> list[Rates]:
    """Measures pipelines in turn, a round of each at a time.

    Args:
      split: the images.
      names: of the pipelines.
      batch_size: images of a batch.
      workers: worker processes or threads of each pipeline.
      batches: length of a round.
      rounds: number of rounds.
    """
    spawn = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with contextlib.ExitStack() as closing:
        for name in names:
            ours, theirs = spawn.Pipe()
            # Daemonic processes may not have workers, so this one is ended by closing the pipe.
            process = spawn.Process(target=_serve, args=(theirs, name, split, batch_size, workers))
            process.start()
            closing.callback(process.join)
            theirs.close()
            connections[name] = closing.enter_context(ours)
            _receive(ours, name)  # so that none starts up while another is measured
        for _ in range(rounds):
            for name, connection in connections.items():
                connection.send(batches)
                measured[name].append(_receive(connection, name))
    images = batches * batch_size
    return [
        Rates(name, [images / wall for wall, _ in pairs], [images / cpu for _, cpu in pairs])
        for name, pairs in measured.items()
    ]


def _serve(
    connection: Connection, name: str, split: Examples, batch_size: int, workers: int
) -> None:
    """Runs one pipeline: receives a number of batches, takes them, sends (seconds, CPU seconds)."""
    batches = input_pipelines.PIPELINES[name](split, batch_size, workers)
    for _ in range(2 * workers + 2):
        next(batches)
    wait_until_idle()
    connection.send(name)
    # The pipe is closed when the other side has finished or failed.
    with contextlib.closing(batches), contextlib.suppress(EOFError):
        while True:
            count = connection.recv()
            start, before = time.monotonic(), cpu_seconds()
            for _ in range(count):
                next(batches)
            end, after = wait_until_idle()
            connection.send((end - start, after - before))


def _receive(connection: Connection, name: str) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(f"{name} ended early; its error is printed above") from None


def rate_table(results: Sequence[Rates], targets: Sequence[int]) -> Table:
    """Median rates with their range, and the cores that reach each target rate."""
    columns = ("pipeline", "images / CPU second", "images / second")
    rows = []
    for rates in results:
        cpu, median = rates.per_cpu_second, statistics.median(rates.per_cpu_second)
        rows.append(
            (
                rates.pipeline,
                f"{median:.0f} ({min(cpu):.0f} to {max(cpu):.0f})",
                f"{statistics.median(rates.per_second):.0f}",
                *(str(math.ceil(target / median)) for target in targets),
            )
        )
    return Table((*columns, *(f"cores for {target} / s" for target in targets)), tuple(rows))


class MemoryPoint(NamedTuple):
    """Memory of all processes of a pipeline after a number of batches."""

    batches: int
    bytes: int


def memory_curve(
    split: Examples, *, batch_size: int, workers: int, batches: int
) -> Iterator[MemoryPoint]:
    """Memory of this package's pipeline at 20 points, each a twentieth of the batches later."""
    every = max(1, batches // _POINTS)
    stream = input_pipelines.lrnet_jax(split, batch_size, workers)
    for number in range(1, batches + 1):
        next(stream)
        if number % every == 0:
            yield MemoryPoint(number, memory_bytes())

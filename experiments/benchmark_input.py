"""How many images a second the input pipeline delivers, and what they cost.

    python -m experiments.benchmark_input [--data=imagenet2012 --data_dir=DIR] [--rate=2500]
    python -m experiments.benchmark_input --memory [--batches=20000]

Without --data it writes its own file: photographs of the mean size and weight of ImageNet's. The
pipelines (see `input_pipelines`) run in processes of their own and in turn, a round of each at a
time, and are charged for the CPU seconds of all their processes and threads, from idle with full
buffers to idle with full buffers. Trust images per CPU second: images per second depend on who else
is using the machine. torchvision and tf.data take part where they are installed.

--memory runs this package's pipeline alone and prints the memory of all its processes.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from experiments.bench import input_pipelines
from lrnet_jax.data import DamagedDatasetError, MissingDatasetError, open_dataset
from lrnet_jax.data.imagenet import PreparedDataset
from lrnet_jax.data.prepared import Split

PROC = pathlib.Path("/proc")
IDLE_SECONDS = 0.3
IDLE_CPU_SECONDS = 0.03  # within them: looking takes time too, and threads wake up now and then
PATIENCE = 120.0
POINTS = 20  # of the memory curve


def processes() -> list[pathlib.Path]:
    """Folders in /proc of the process that asks and of its descendants."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        fields = _stat(folder)
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, queue = [], [os.getpid()]
    while queue:
        pid = queue.pop()
        found.append(PROC / str(pid))
        queue += children.get(pid, [])
    return found


def cpu_seconds() -> float:
    """User and system time of this process and its descendants, ended ones included."""
    ticks = sum(sum(map(int, fields[11:15])) for fields in map(_stat, processes()) if fields)
    return ticks / os.sysconf("SC_CLK_TCK")


def memory() -> int:
    """Bytes of memory of this process and its descendants, shared pages counted once."""
    total = 0
    for folder in processes():
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def _stat(folder: pathlib.Path) -> list[str]:
    """Fields of /proc/PID/stat from the third on (state); none of a process that has ended."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def settle() -> tuple[float, float]:
    """Waits until nothing computes; (when that began, CPU seconds until then)."""
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        since, spent = time.monotonic(), cpu_seconds()
        time.sleep(IDLE_SECONDS)
        if cpu_seconds() - spent < IDLE_CPU_SECONDS:
            return since, spent
    raise TimeoutError(f"a pipeline still computes {PATIENCE:.0f} s after its last batch was taken")


def serve(connection: Connection, name: str, split: Split, batch_size: int, workers: int) -> None:
    """One pipeline in a process of its own: takes a number of batches, answers (seconds, CPU)."""
    batches = input_pipelines.PIPELINES[name](split, batch_size, workers)
    for _ in range(2 * workers + 2):
        next(batches)
    settle()
    connection.send(name)
    # The pipe's end means that the other side is done, or has failed.
    with contextlib.closing(batches), contextlib.suppress(EOFError):
        while True:
            count = connection.recv()
            start, before = time.monotonic(), cpu_seconds()
            for _ in range(count):
                next(batches)
            end, after = settle()
            connection.send((end - start, after - before))


def compare(
    split: Split, names: Sequence[str], *, batch_size: int, workers: int, batches: int, rounds: int
) -> list[dict[str, Any]]:
    """Measures pipelines in turn; a record for each, images per (CPU) second of every round."""
    spawn = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with contextlib.ExitStack() as closing:
        for name in names:
            ours, theirs = spawn.Pipe()
            # Not daemonic: such processes may have no workers. Closing the pipe ends them.
            process = spawn.Process(target=serve, args=(theirs, name, split, batch_size, workers))
            process.start()
            theirs.close()
            connections[name] = closing.enter_context(ours)
            _receive(ours, name)  # one after the other: none starts up while another is measured
        for _ in range(rounds):
            for name, connection in connections.items():
                connection.send(batches)
                measured[name].append(_receive(connection, name))
    images = batches * batch_size
    return [
        {
            "pipeline": name,
            "per_second": [images / wall for wall, _ in pairs],
            "per_cpu_second": [images / cpu for _, cpu in pairs],
        }
        for name, pairs in measured.items()
    ]


def _receive(connection: Connection, name: str) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(f"{name} ended early; its own message stands above") from None


def table(results: Sequence[dict[str, Any]], rates: Sequence[int]) -> str:
    """The results in Markdown: medians, least and most, and the cores that feed each rate."""
    head = ["pipeline", "images / CPU second", "images / second"]
    head += [f"cores for {rate} / s" for rate in rates]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for result in results:
        cpu, wall = result["per_cpu_second"], result["per_second"]
        median = statistics.median(cpu)
        cells = [result["pipeline"], f"{median:.0f} ({min(cpu):.0f} to {max(cpu):.0f})"]
        cells += [f"{statistics.median(wall):.0f}"]
        cells += [str(math.ceil(rate / median)) for rate in rates]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_curve(
    split: Split, *, batch_size: int, workers: int, batches: int
) -> Iterator[tuple[int, int]]:
    """(batches so far, bytes) at 20 points, the first after a twentieth."""
    every = max(1, batches // POINTS)
    stream = input_pipelines.lrnet_jax(split, batch_size, workers)
    for number in range(1, batches + 1):
        next(stream)
        if number % every == 0:
            yield number, memory()


def open_split(data: str | None, data_dir: str | None, folder: str) -> Split:
    """The training split to read: of a prepared data set, or of our own making."""
    if data is None:
        return input_pipelines.photographs(pathlib.Path(folder))
    dataset = open_dataset(data, data_dir=data_dir)
    if not isinstance(dataset, PreparedDataset):
        raise ValueError(f"--data={data} is held in memory: nothing to measure")
    return dataset.train


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="a prepared data set (default: its own photographs)")
    parser.add_argument("--data_dir", help="where it lies")
    parser.add_argument("--pipelines", help="with commas (default: all that are installed)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, help="of a round (20), or of --memory (20000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", default="2500", help="images per second to feed, with commas")
    parser.add_argument("--memory", action="store_true", help="the memory curve instead")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    if not PROC.exists():
        parser.error("needs /proc, which this system has not")
    unknown = set((args.pipelines or "").split(",")) - {"", *input_pipelines.PIPELINES}
    if unknown:
        parser.error(
            f"--pipelines has {', '.join(sorted(unknown))}, which is none of "
            f"{', '.join(input_pipelines.PIPELINES)}"
        )
    for option, least in (("workers", 0), ("batch_size", 1), ("rounds", 1), ("batches", 1)):
        number = getattr(args, option)
        if number is not None and number < least:
            parser.error(f"--{option} must be at least {least}, got {number}")

    with tempfile.TemporaryDirectory() as folder:
        try:
            split = open_split(args.data, args.data_dir, folder)
        except (ValueError, MissingDatasetError, DamagedDatasetError) as error:
            parser.error(str(error))
        sizes = {"batch_size": args.batch_size, "workers": args.workers}
        record: dict[str, Any] = sizes | {"data": args.data or "photographs"}
        if args.memory:
            record["memory"] = []
            batches = args.batches or 20_000
            for number, used in memory_curve(split, batches=batches, **sizes):
                record["memory"].append((number, used))
                print(f"{number:8d} batches  {used / 2**20:7.1f} MB", flush=True)
        else:
            chosen = args.pipelines.split(",") if args.pipelines else input_pipelines.PIPELINES
            reasons = {name: input_pipelines.left_out(name, split) for name in chosen}
            for name, reason in reasons.items():
                if reason:
                    print(f"left out: {name}, {reason}", file=sys.stderr)
            names = [name for name, reason in reasons.items() if not reason]
            batches = args.batches or 20
            record["results"] = compare(split, names, batches=batches, rounds=args.rounds, **sizes)
            print(table(record["results"], [int(rate) for rate in args.rate.split(",")]))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

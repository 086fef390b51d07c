"""CPU time and memory of a family of processes."""

import multiprocessing
import time

import numpy as np
import pytest

from experiments.bench import process_use

pytestmark = pytest.mark.skipif(not process_use.PROC.exists(), reason="needs /proc")


def burn(connection, seconds, size):
    block = np.ones(size, np.uint8)
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    connection.send(block.size)
    connection.recv()


def test_processes_below_this_one_count():
    """A child that computes for 0.4 s and holds 50 MB, while it lives and after it has ended."""
    spent, used = process_use.cpu_seconds(), process_use.memory_bytes()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=burn, args=(theirs, 0.4, 50_000_000)
    )
    child.start()
    ours.recv()
    assert child.pid in [int(folder.name) for folder in process_use.family()]
    assert 0.4 <= process_use.cpu_seconds() - spent < 30
    assert process_use.memory_bytes() - used > 50_000_000
    ours.send(None)
    child.join()
    assert process_use.cpu_seconds() - spent >= 0.4
    assert process_use.memory_bytes() - used < 50_000_000

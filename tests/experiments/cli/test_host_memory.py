"""Freed memory of the host: page faults of a process that allocates the same again and again."""

import os
import platform
import subprocess
import sys

import pytest

# NumPy allocates by malloc. The thread is one of those whose arena is not the first by default.
PROGRAM = """
import resource, threading
import numpy as np
from experiments.cli.host_memory import keep_freed_memory

print(keep_freed_memory())

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def allocate():
    np.ones(25_000_000, np.float32)  # 100 MB
    before = faults()
    for _ in range(3):
        np.empty(700_000_000, np.float32)  # 2.8 GB, never touched
        np.ones(25_000_000, np.float32)
    print(faults() - before)

allocate()
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def run(**variables):
    clean = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=clean | variables,
    )
    kept, *faults = done.stdout.split()
    return kept == "True", [int(count) for count in faults]


@pytest.mark.skipif(not GLIBC, reason="malloc is not that of glibc")
def test_memory_that_was_freed_costs_no_page_faults():
    kept, (main_thread, other_thread) = run()
    assert kept
    assert main_thread < 100
    assert other_thread < 100


def test_the_users_settings_of_malloc_count_instead():
    assert run(MALLOC_PERTURB_="0")[0] is False
    assert run(GLIBC_TUNABLES="glibc.malloc.perturb=0")[0] is False


@pytest.mark.skipif(not GLIBC, reason="malloc is not that of glibc")
def test_without_it_each_allocation_costs_page_faults():
    """The premise of the other test."""
    assert min(run(MALLOC_PERTURB_="0")[1]) > 100

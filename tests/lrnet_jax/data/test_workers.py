"""Processes that load images keep away from the devices."""

import os
import subprocess
import sys

PROGRAM = """
from lrnet_jax.data.loading import load
from tests.lrnet_jax.data import worker_report
(found,) = load(worker_report.report, 0, 1, num_workers=1)
print({name: found.batch[name].tobytes().decode() for name in sorted(found.batch)})
"""


def test_a_worker_sees_the_cpu_only():
    """In an environment that asks for a GPU, where JAX would fail without one."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"JAX_PLATFORMS": "cuda"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "{'backend': 'cpu', 'variable': 'cpu'}\n", done.stderr

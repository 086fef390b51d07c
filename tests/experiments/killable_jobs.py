"""Training runs in separate processes that a test can kill."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from lrnet_jax.training.metric_writers import METRICS
from tests.experiments.tiny_run import TINY

TIMEOUT = 300


def command(workdir, changes):
    fields = {**TINY, **changes}
    return [
        sys.executable, "-m", "experiments.train", "--config=quickstart", f"--workdir={workdir}",
        *(f"--config.{path}={text}" for path, text in fields.items()),
    ]  # fmt: skip


def environment(devices, cache):
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        # Compilation is nearly all of a restart here.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


class Job:
    """A run in a process that prints to a file."""

    def __init__(self, workdir, changes, *, devices, cache, arguments=(), log=None):
        self.log = (log or pathlib.Path(workdir).parent) / f"{time.monotonic_ns()}.log"
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*command(workdir, changes), *arguments],
                stdout=file, stderr=subprocess.STDOUT, env=environment(devices, cache),
            )  # fmt: skip

    def output(self):
        return self.log.read_text()

    def wait(self, timeout=TIMEOUT):
        """The exit code. If the process does not end, the error shows what it printed."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"did not end in {timeout} s:\n{self.output()}") from None

    def until(self, text, timeout=TIMEOUT):
        """Waits until it has printed a text; False if it ended before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if text in self.output():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        self.process.kill()
        raise AssertionError(f"did not print {text!r} in {timeout} s:\n{self.output()}")

    def until_steps(self, workdir, count, timeout=TIMEOUT):
        """Waits until so many steps of the run are recorded, or the process ended."""
        end = time.monotonic() + timeout
        path = workdir / METRICS
        while time.monotonic() < end and self.process.poll() is None:
            if path.exists() and path.read_text().count('"train"') >= count:
                return
            time.sleep(0.01)

    def signal(self, number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


def pair(workdir, changes, *, devices, cache):
    """Two processes that train together, with `devices` each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        Job(
            workdir, changes, devices=devices, cache=cache,
            arguments=[
                f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={process}",
            ],
        )
        for process in range(2)
    ]  # fmt: skip

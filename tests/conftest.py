"""Settings of every test, made before JAX is imported.

The CPU gets four devices, so that pmap has something to map over. Nearly all the time of the tests
is compilation, so they compile at a lower level, and what one of them compiled the others load:
other modules, other processes of pytest-xdist, commands that a test starts.
"""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A flag that XLA_FLAGS holds already is kept as it is.
FLAGS = {
    "--xla_force_host_platform_device_count": "4",
    # A third less time than at the default level. At level 0, gradients of non-local networks with
    # pooling are nan.
    "--xla_backend_optimization_level": "1",
}
given = os.environ.get("XLA_FLAGS", "")
added = [f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added])

# A folder of the session alone: JAX would never delete what a kept one collects. Workers of
# pytest-xdist find the variable set by the process that started them.
session_cache = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    session_cache = tempfile.mkdtemp(prefix="lrnet-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = session_cache
# Loading takes milliseconds.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def pytest_unconfigure():
    """Deletes the compiled programs of this session."""
    if session_cache is not None:
        shutil.rmtree(session_cache, ignore_errors=True)

"""Settings of every test, made before JAX is imported.

The CPU gets four devices, so that pmap has something to map over. Nearly all the time of the tests
is compilation, so they compile at a lower level, and what one of them compiled the others load:
other modules, other processes of pytest-xdist, commands that a test starts.
"""

import os
import pathlib
import shutil

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Otherwise compiling for a GPU that is not here takes four times as long, for the names in stack
# traces that nobody reads.
os.environ.setdefault("LLVM_DISABLE_SYMBOLIZATION", "1")

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

# Kept from run to run: what did not change is not compiled again. Keys hold the program, the flags
# and the versions. Workers of pytest-xdist find the variable set by the process that started them.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
MAX_BYTES = 2 * 2**30
starts_session = "JAX_COMPILATION_CACHE_DIR" not in os.environ
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
# Loading takes milliseconds.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def pytest_unconfigure():
    """Deletes the compiled programs once they are many. JAX itself never does."""
    if not starts_session:  # others may still write there
        return
    size = sum(file.stat().st_size for file in CACHE.rglob("*") if file.is_file())
    if size > MAX_BYTES:
        shutil.rmtree(CACHE, ignore_errors=True)


# Linux gives a process 65,530 maps of memory by default, and one more ends it. A compiled program
# takes some, and a process that runs all tests compiles very many.
MOST_MAPS = 30_000


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Lets go of the compiled programs once they are many."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()

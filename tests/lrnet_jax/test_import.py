"""What `import lrnet_jax` costs."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import flax, jax
from flax import nnx
before = set(sys.modules)
import lrnet_jax
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_an_import_reads_jax_flax_and_this_library_only():
    """Orbax alone takes a third of a second, and TFDS more."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    foreign = set(json.loads(done.stdout)) - {"jax", "jaxlib", "lrnet_jax", "pallas_kernels"}
    assert foreign <= sys.stdlib_module_names

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
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_an_import_reads_jax_flax_pillow_and_this_library_only():
    """Orbax alone takes a third of a second, and TFDS more. Pillow takes a fiftieth."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout)
    foreign = {name.partition(".")[0] for name in loaded} - {
        "PIL", "jax", "jaxlib", "lrnet_jax", "pallas_kernels",
    }  # fmt: skip
    assert foreign <= sys.stdlib_module_names
    assert not [name for name in loaded if "pallas.triton" in name]  # a tenth of JAX

"""Settings of every test: a CPU with four devices, so that pmap has something to map over."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What XLA_FLAGS holds already is kept, and takes precedence.
FLAGS = {
    "--xla_force_host_platform_device_count": "4",
    # Nearly all of the time is compilation, and at this level a third less of it. At level 0,
    # gradients of the non-local networks are nan.
    "--xla_backend_optimization_level": "1",
}
given = os.environ.get("XLA_FLAGS", "")
added = [f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added])

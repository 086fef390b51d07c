"""What a worker of the input pipeline finds, for `test_workers.py`."""

import os

import jax
import numpy as np

from lrnet_jax.data.loading import Loaded


def report(step: int) -> Loaded:
    """A batch that says what JAX would compute on."""
    del step
    texts = {"variable": os.environ["JAX_PLATFORMS"], "backend": jax.default_backend()}
    return Loaded({k: np.frombuffer(v.encode(), np.uint8) for k, v in texts.items()}, ())

"""Averages of weights, as numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrnet_jax.training.state import average


@pytest.mark.parametrize("decay", [0.5, 0.9999])
@pytest.mark.parametrize("step", [1, 2, 3000, 1_000_000])
def test_the_share_of_a_step_keeps_its_digits(step, decay):
    share = jax.jit(lambda n: average(0.0, 1.0, n, decay))(jnp.int32(step))
    np.testing.assert_allclose(share, (1 - decay) / (1 - decay**step), rtol=1e-6)

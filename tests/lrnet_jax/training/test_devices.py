"""A batch and the devices that share it."""

import jax
import numpy as np
import pytest

from lrnet_jax.training.devices import shard


def test_a_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 cannot be split over 4 devices"):
        shard({"label": np.zeros(6)}, jax.local_devices()[:4])

"""Which metrics count as a fault."""

import pytest

from lrnet_jax.training.divergence import fault


@pytest.mark.parametrize(
    ("loss", "norm", "found"),
    [
        (2.3, 1.0, None),
        (float("nan"), 1.0, "loss is nan"),
        (2.3, float("inf"), "gradient_norm is inf"),
        (1001.0, 1.0, "loss is 1001, above train.max_loss 1000.0"),
    ],
)
def test_faults(loss, norm, found):
    assert fault({"loss": loss, "gradient_norm": norm}, 1000.0) == found
    if loss == 1001:
        assert fault({"loss": loss, "gradient_norm": norm}, None) is None

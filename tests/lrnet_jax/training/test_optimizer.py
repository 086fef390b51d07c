"""The learning rate of the paper, step by step."""

import numpy as np
import pytest

from lrnet_jax.training.optimizer import learning_rate_schedule


def test_the_papers_schedule():
    """0.4 after 5 epochs of warm-up, x0.1 at 30, 60 and 90 of 110; here 10 steps an epoch."""
    rate = learning_rate_schedule(
        0.4, total_steps=1100, warmup_steps=50, boundaries=[300, 600, 900]
    )
    want = {0: 0.4 / 50, 24: 0.2, 49: 0.4, 299: 0.4, 300: 0.04, 600: 0.004, 900: 4e-4, 1099: 4e-4}
    for step, value in want.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


def test_cosine_falls_from_the_warm_up_to_zero():
    rate = learning_rate_schedule(1.0, total_steps=110, warmup_steps=10, decay="cosine")
    rates = np.array([float(rate(step)) for step in range(111)])
    assert rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5, abs=1e-6)
    assert rates[110] == pytest.approx(0.0, abs=1e-6)
    assert (np.diff(rates[10:]) < 0).all()

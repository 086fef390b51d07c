"""The least work of a local relation, counted by hand."""

import math

from experiments.bench import gpu_bounds
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import Shape


def test_work_by_hand():
    """2 images of 4 x 6 pixels, 10 channels in 2 groups of 8, 3 x 3 taps, stride 2."""
    work = gpu_bounds.work(Shape("x", 4, 6, 10, Spec((3, 3), 8, stride=2), batch=2), "bfloat16")
    pixels, inner = 2 * 4 * 6, 2 * 2 * 3
    arrays = inner * 2 + pixels * 2 + pixels * 10  # query, key, value
    forward = 2 * (arrays + inner * 10) + 8 * inner * 2
    assert work["forward"]["bytes"] == forward
    assert work["forward_backward"]["bytes"] == 2 * forward + 2 * (arrays + inner * 10)
    pairs = inner * 2 * 9
    assert work["forward"]["multiply_adds"] == pairs * (3 + 1 + 8)
    assert work["forward_backward"]["multiply_adds"] == pairs * (12 + 4 + 16 + 5)


def test_the_bound_is_the_larger_time():
    hardware = {"bytes_per_second": 100.0, "multiply_adds_per_second": 10.0}
    assert gpu_bounds.bound_seconds({"bytes": 300.0, "multiply_adds": 20.0}, hardware) == 3
    assert gpu_bounds.bound_seconds({"bytes": 100.0, "multiply_adds": 20.0}, hardware) == 2


def test_rates_are_measured():
    rates = gpu_bounds.measure(small=True)
    assert math.isfinite(rates["bytes_per_second"])
    assert rates["bytes_per_second"] > 0
    assert rates["multiply_adds_per_second"] > 0

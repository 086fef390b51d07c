"""Tuning without a GPU: what it would measure, and that it keeps the fastest."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import pallas
from pallas_kernels.pallas import tiling
from pallas_kernels.tools import tune
from pallas_kernels.tools.kernel_programs import KERNELS, program
from pallas_kernels.tools.shapes import SHAPES

SHAPE = SHAPES["lrnet50/res3"]


def test_says_that_there_is_no_gpu():
    with pytest.raises(RuntimeError, match="nothing to tune: JAX computes on cpu"):
        tune.tune([SHAPE], jnp.bfloat16)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["lrnet50/res3", "odd/no_softmax", "odd/no_prior"])
def test_arguments_fit_the_programs(kernel, name):
    _, _, function, avals = program(SHAPES[name], jnp.dtype("bfloat16"), kernel, None)
    arrays = tune.arguments(SHAPES[name], jnp.dtype("bfloat16"), kernel)
    sizes = jax.tree.map(lambda x: (x.shape, x.dtype), avals)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), arrays) == sizes
    jax.eval_shape(function, *arrays)


def test_keeps_the_fastest(tmp_path, monkeypatch):
    monkeypatch.setattr(tiling, "TABLE", tmp_path / "tiles.json")
    monkeypatch.setattr(tiling, "gpu_name", lambda: "some GPU")
    monkeypatch.setattr(pallas, "unavailable", lambda: None)
    monkeypatch.setattr(tune, "arguments", lambda *_: [])
    tiling._table.cache_clear()
    measured = []

    def seconds(function, arrays, rounds):
        measured.append(function)
        return 1e-6 * abs(len(measured) % 7 - 3) + 1e-6

    monkeypatch.setattr(tune, "seconds", seconds)
    lines = []
    tune.tune([SHAPE], jnp.dtype("bfloat16"), report=lines.append)
    problem = program(SHAPE, jnp.dtype("bfloat16"), "forward", None)[0]
    choices = tune.choices(problem, "forward")
    assert tiling.forward_tile(problem) == choices[2] != tiling.heuristic(problem, "forward")
    assert len(lines) == 3
    assert "1.0 us, 0.333 of the heuristic" in lines[0]
    tiling._table.cache_clear()

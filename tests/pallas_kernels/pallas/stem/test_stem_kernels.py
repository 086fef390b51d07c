"""The kernels of the stem: in interpret mode, compiled for GPUs, and executed in the emulator."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import pallas
from pallas_kernels.pallas import stem
from pallas_kernels.tools.cross_compilation import GPUS, kernels, missing
from tests.pallas_kernels.pallas.stem.stem_problems import STEMS, StemProblem, faults

needs_compiler = pytest.mark.skipif(missing() is not None, reason=str(missing()))
NETWORK = StemProblem(128, 224, 224, 3, 64, 8, 8, 1, 2)


@functools.cache
def results(name, dtype):
    arrays = STEMS[name].arrays(dtype)
    fast = {"xla_backend_optimization_level": 0}
    function = functools.partial(STEMS[name].run, True)
    return jax.jit(function, compiler_options=fast)(*arrays)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STEMS)
def test_interpreted_kernels_against_float64(name, dtype):
    assert not faults(STEMS[name], jnp.dtype(dtype), *results(name, dtype))


def test_a_wrong_result_is_a_fault():
    """The comparison of this file and of the emulation."""
    maps, sums = results("ghost", "float32")
    wrong = sums._replace(products=sums.products.at[1, 2, 3].mul(1.001))
    [line] = faults(STEMS["ghost"], jnp.float32, maps, wrong)
    assert line.startswith("sums.products: error")
    wrong = maps._replace(query=jnp.roll(maps.query, 1, 2))
    assert faults(STEMS["ghost"], jnp.float32, wrong, sums)


def test_vmap():
    """A stack of two problems, as an ensemble of networks has it."""
    inputs, d_maps = STEMS["ghost"].arrays(jnp.float32)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), (inputs, d_maps))
    function = functools.partial(STEMS["ghost"].run, True)
    both = jax.jit(jax.vmap(function))(*stacked)
    for a, b in zip(
        jax.tree.leaves(both), jax.tree.leaves(results("ghost", "float32")), strict=True
    ):
        np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"channels": 129}, "channels"),
        ({"keys": 30}, "columns"),
        ({"images": 4096}, "elements"),
    ],
)
def test_unsupported(change, part):
    assert stem.unsupported(abstract(NETWORK, jnp.bfloat16)[0]) is None
    other = dataclasses.replace(NETWORK, **change)
    assert part in stem.unsupported(abstract(other, jnp.bfloat16)[0])


def test_unsupported_without_the_backend(monkeypatch):
    monkeypatch.setattr(pallas, "backend_gone", lambda: "JAX has no Pallas-Triton")
    assert stem.unsupported(abstract(NETWORK, jnp.bfloat16)[0]) == "JAX has no Pallas-Triton"


def abstract(problem, dtype):
    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    inputs = stem.Inputs(
        shape(problem.images, problem.height, problem.width, problem.inputs, dtype=dtype),
        shape(problem.groups, problem.inputs),
        shape(problem.groups, problem.inputs, problem.channels),
        shape(problem.channels),
        shape(problem.channels, problem.keys),
        shape(problem.channels, problem.queries),
    )
    return inputs, stem.map_shapes(inputs, problem.stride)


# Sizes whose programs hold most: channels, columns of keys and queries, channels of images.
LARGE = {
    "network": NETWORK,
    "wide": StemProblem(8, 224, 224, 4, 128, 8, 8, 2, 2),
    "columns": StemProblem(8, 224, 224, 3, 64, 16, 16, 1, 1),
}


@needs_compiler
@pytest.mark.parametrize(
    ("gpu", "name", "dtype"),
    [
        *((g, "network", d) for g in ("a100", "h100", "b200") for d in ("bfloat16", "float32")),
        ("h100", "wide", "bfloat16"),
        ("h100", "columns", "bfloat16"),
    ],
)
def test_no_spills(gpu, name, dtype):
    arrays = abstract(LARGE[name], jnp.dtype(dtype))
    assert stem.unsupported(arrays[0]) is None
    found = kernels(GPUS[gpu], functools.partial(LARGE[name].run, False), *arrays)
    ours = [kernel for kernel in found if kernel.name.startswith("stem_")]
    assert len(ours) == 2
    assert [kernel.spills for kernel in ours] == [0, 0]
    if name == "network":
        assert all(kernel.resident_warps(GPUS[gpu]) >= 8 for kernel in ours)


@pytest.mark.parametrize(("bug", "code"), [(False, 0), (True, 1)])
@pytest.mark.parametrize("problem", ["ghost", "odd"])  # of the stem, and of the projections
def test_compiled_kernels_executed(problem, bug, code):
    command = [
        sys.executable, "-m", "tests.pallas_kernels.pallas.stem.emulate_stem",
        f"--problems={problem}", "--arch=9.0", "--dtypes=bfloat16",
    ]  # fmt: skip
    if bug:
        command.append("--plant-bug")
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.stdout.startswith("SKIPPED"):
        pytest.skip(done.stdout)
    assert done.returncode == code, done.stdout + done.stderr[-2000:]
    assert ("WRONG: maps.value" in done.stdout) == bug

"""Tuning without a GPU: what it would measure, and that it keeps the fastest."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import jax_triton, pallas
from pallas_kernels.jax_triton import stack
from pallas_kernels.pallas import tiling
from pallas_kernels.pallas.problem import Problem
from pallas_kernels.tools import benchmark, kernel_programs, tune
from pallas_kernels.tools.kernel_programs import KERNELS, program
from pallas_kernels.tools.shapes import SHAPES

SHAPE = SHAPES["lrnet50/res3"]


needs_triton = pytest.mark.skipif(stack.missing() is not None, reason=str(stack.missing()))


def test_says_that_there_is_no_gpu():
    with pytest.raises(RuntimeError, match="nothing to tune: JAX computes on cpu"):
        tune.tune([SHAPE], jnp.bfloat16)


def test_says_what_cannot_run_before_it_measures(monkeypatch):
    monkeypatch.setattr(tiling, "gpu_name", lambda: "some GPU")
    monkeypatch.setattr(jax_triton, "unavailable", lambda: None)
    monkeypatch.setattr(stack, "missing", lambda: None)
    dilated = SHAPES["odd/dilation3_stride2"]
    message = "jax_triton cannot run odd/dilation3_stride2: dilation is 3"
    with pytest.raises(RuntimeError, match=message):
        tune.tune([dilated, SHAPE], jnp.bfloat16, implementation="jax_triton")


@pytest.mark.parametrize(
    "implementation", ["pallas", pytest.param("jax_triton", marks=needs_triton)]
)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["lrnet50/res3", "odd/no_softmax", "odd/no_prior"])
def test_arguments_fit_the_programs(kernel, name, implementation):
    dtype = jnp.dtype("bfloat16")
    _, _, function, avals = program(SHAPES[name], dtype, kernel, None, implementation)
    arrays = tune.arguments(SHAPES[name], dtype, kernel, implementation)
    sizes = jax.tree.map(lambda x: (x.shape, x.dtype), avals)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), arrays) == sizes
    jax.eval_shape(function, *arrays)


@pytest.mark.parametrize(
    ("implementation", "other"), [("pallas", "jax_triton"), ("jax_triton", "pallas")]
)
def test_keeps_the_fastest(tmp_path, monkeypatch, implementation, other):
    monkeypatch.setattr(tiling, "TABLE", tmp_path / "tiles.json")
    monkeypatch.setattr(tiling, "gpu_name", lambda: "some GPU")
    for module in (pallas, jax_triton):
        monkeypatch.setattr(module, "unavailable", lambda: None)
    monkeypatch.setattr(stack, "missing", lambda: None)
    monkeypatch.setattr(tune, "arguments", lambda *_: [])
    tiling._table.cache_clear()
    measured = []

    def seconds(function, arrays, rounds):
        measured.append(function)
        return 1e-6 * abs(len(measured) % 7 - 3) + 1e-6

    monkeypatch.setattr(tune, "seconds", seconds)
    lines = []
    dtype = jnp.dtype("bfloat16")
    tune.tune([SHAPE], dtype, report=lines.append, implementation=implementation)
    problem = Problem.of(SHAPE.spec, SHAPE.abstract_inputs(dtype))
    choices, heuristic = tune.choices(problem, "forward"), tiling.heuristic(problem, "forward")
    assert tiling.chosen(problem, "forward", implementation) == choices[2] != heuristic
    assert tiling.chosen(problem, "forward", other) == heuristic
    assert len(lines) == 3
    assert lines[0].startswith(f"{implementation} lrnet50/res3 forward: Tile(")
    assert "1.0 us, 0.333 of the heuristic" in lines[0]
    modules = {function.func.__module__ for function in measured}
    assert modules == {kernel_programs.MODULES[implementation]}
    tiling._table.cache_clear()


class TestCommand:
    """`python -m pallas_kernels.benchmark --tune`."""

    @pytest.fixture
    def tuned(self, monkeypatch):
        """The implementations that the command tunes, where those of `running` run."""

        def run(running, *arguments):
            found = []
            monkeypatch.setattr(pallas, "unavailable", lambda: None)
            monkeypatch.setattr(jax_triton, "unavailable", lambda: None)
            gone = None if "pallas" in running else "JAX has no Pallas-Triton"
            monkeypatch.setattr(pallas, "backend_gone", lambda: gone)
            missing = None if "jax_triton" in running else "the package triton is not installed"
            monkeypatch.setattr(stack, "missing", lambda: missing)
            monkeypatch.setattr(
                benchmark, "tune", lambda *_, implementation: found.append(implementation)
            )
            benchmark.main(["--tune", "--shapes=lrnet50/res3", *arguments])
            return found

        return run

    def test_all_that_run_or_those_that_are_named(self, tuned):
        both = ["pallas", "jax_triton"]
        assert tuned(both) == both
        assert tuned(["jax_triton"]) == ["jax_triton"]
        assert tuned(both, "--implementations=jax_triton") == ["jax_triton"]

    def test_one_without_tiles(self, tuned, capsys):
        with pytest.raises(SystemExit) as exit:
            tuned(["pallas"], "--implementations=xla")
        assert exit.value.code == 2
        assert "--tune takes pallas and jax_triton, got 'xla'" in capsys.readouterr().err

    def test_one_that_cannot_run(self, tuned, capsys):
        with pytest.raises(SystemExit):
            tuned(["pallas"], "--implementations=jax_triton")
        assert "jax_triton cannot run lrnet50/res3: the package" in capsys.readouterr().err

"""The C++ implementation alone: instruction sets, threads, extremes, transformations, loading."""

import dataclasses
import functools
import itertools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import implementations, local_relation, native
from pallas_kernels.native import build, library
from pallas_kernels.spec import Spec
from pallas_kernels.tools.comparison import RESULTS
from pallas_kernels.tools.shapes import Shape, make_cotangent, make_inputs
from tests.pallas_kernels.golden import NAMES, load
from tests.pallas_kernels.under_test import assert_close, run

SMALL = Shape("small", 6, 7, 6, Spec((3, 5), 4))
ABSENT = library.obstacle()
needs_library = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
instruction_sets = library.instruction_sets() if ABSENT is None else []


@pytest.fixture
def use():
    """`library.use`, until the end of the test."""
    yield library.use
    library.use(library.best(instruction_sets, os.environ.get("XLA_FLAGS", "")))


@functools.cache
def golden_results(name):
    """A function of one case's arrays: the program of all instruction sets is the same."""
    options = {**load(name).options, "implementation": "native"}

    @jax.jit
    def results(cotangent, *inputs):
        out, vjp = jax.vjp(functools.partial(local_relation, **options), *inputs)
        return out, *vjp(cotangent)

    return results


@needs_library
@pytest.mark.parametrize("instruction_set", instruction_sets[1:])
@pytest.mark.parametrize("name", NAMES)
def test_golden_with_other_instructions(name, instruction_set, use):
    """The best instruction set is tested with all other implementations."""
    use(instruction_set)
    case = load(name)
    arrays = [jnp.asarray(x, jnp.float32) for x in (case.cotangent, *case.inputs)]
    found = golden_results(name)(*arrays)
    for got, (result, want) in zip(found, case.results.items(), strict=True):
        error = np.abs(np.asarray(got, np.float64) - want).max()
        limit = case.tol32 * max(case.gross[result], np.abs(want).max())
        assert np.isnan(limit) or error <= limit, f"{result}: error {error:.3g} > {limit:.3g}"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("", "avx512"),
        ("--xla_cpu_max_isa=AVX512", "avx512"),
        ("--xla_cpu_max_isa=AVX2 --other=1", "avx2"),
        ("--other=1 --xla_cpu_max_isa=SSE4_2", "sse2"),
    ],
)
def test_the_instructions_that_xla_is_allowed(flags, name):
    """`make test-isa` is also for the C++."""
    assert library.best(["avx512", "avx2", "sse2"], flags) == name


def test_one_instruction_set_needs_no_choice():
    assert library.best(["baseline"], "") == "baseline"


@needs_library
def test_results_do_not_depend_on_the_number_of_threads(use):
    """Several images, blocks and chunks of groups, the last of each smaller."""
    shape = Shape("threads", 35, 19, 130, Spec((3, 3), 8), batch=2)
    plan = library.plan((2, 35, 19, 130, 35, 19, 17, 1, 3, 3, 8, 1, 1, 1, 0, 0, 0))
    assert plan.blocks == 2
    assert plan.tasks == 2 * 2 * 2
    inputs, cotangent = make_inputs(shape), make_cotangent(shape)
    for instruction_set in instruction_sets:
        found = []
        for threads in (1, 2, 7):
            use(instruction_set, threads)
            found.append(run(shape, "native", inputs, cotangent))
        for other in found[1:]:
            for name in RESULTS:
                np.testing.assert_array_equal(found[0][name], other[name], err_msg=name)


SPECIAL = {
    "key_inf": ("key", [np.inf]),
    "key_nan": ("key", [np.nan]),
    "query_nan": ("query", [np.nan]),
    "value_inf": ("value", [np.inf, -np.inf]),
    "value_nan": ("value", [np.nan]),
    "prior_minus_inf": ("prior", [-np.inf]),
}


@needs_library
@pytest.mark.parametrize("normalization", ["softmax", "none"])
@pytest.mark.parametrize("name", SPECIAL)
def test_infinities_and_nan(name, normalization):
    """The output has infinities and NaN exactly where that of the reference has them."""
    spec = dataclasses.replace(SMALL.spec, normalization=normalization)
    field, numbers = SPECIAL[name]
    inputs = make_inputs(SMALL)
    array = np.array(getattr(inputs, field))
    array.reshape(-1)[7 : 7 + len(numbers)] = numbers
    inputs = inputs._replace(**{field: jnp.asarray(array)})
    options = dataclasses.replace(SMALL, spec=spec).options
    got, want = (
        np.asarray(local_relation(*inputs, **options, implementation=i))
        for i in ("native", "reference")
    )
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))
    fine = np.isfinite(want)
    assert fine.any()
    np.testing.assert_allclose(got[fine], want[fine], rtol=1e-5, atol=1e-5)


@needs_library
def test_a_window_without_weight():
    """Logits of -inf everywhere give NaN, as the reference does."""
    inputs = make_inputs(SMALL)._replace(prior=jnp.full(SMALL.prior, -jnp.inf))
    out = local_relation(*inputs, **SMALL.options, implementation="native")
    assert np.isnan(out).all()


def loss(*arrays, implementation="native"):
    out = local_relation(*arrays, **SMALL.options, implementation=implementation)
    return jnp.sum(jnp.sin(out))


@needs_library
def test_vmap_of_everything_twice():
    """Every array has two more axes, also the prior; gradients too. One call runs them all."""
    many = [make_inputs(SMALL, seed=i) for i in range(6)]
    stacked = [jnp.stack(x).reshape(2, 3, *x[0].shape) for x in zip(*many, strict=True)]
    gradients = jax.grad(loss, argnums=(0, 1, 2, 3))
    twice = jax.jit(jax.vmap(jax.vmap(gradients)))
    got = twice(*stacked)
    assert twice.lower(*stacked).as_text().count("@lrnet_cpu_backward") == 1
    for (i, j), inputs in zip(itertools.product(range(2), range(3)), many, strict=True):
        want = gradients(*inputs)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a[i, j], b)


@needs_library
def test_vmap_over_the_prior_alone():
    inputs = make_inputs(SMALL)
    priors = jnp.stack([inputs.prior, 2 * inputs.prior])
    got = jax.vmap(jax.grad(loss, argnums=3), in_axes=(None, None, None, 0))(*inputs[:3], priors)
    for i in (0, 1):
        want = jax.grad(loss, argnums=3)(*inputs[:3], priors[i])
        np.testing.assert_array_equal(got[i], want)


@needs_library
def test_pmap_and_remat():
    """Four devices compute at the same time, each with the memory of its own call."""
    devices = jax.devices()[:4]
    many = [make_inputs(SMALL, seed=i) for i in range(len(devices))]
    stacked = [jnp.stack(x) for x in zip(*many, strict=True)]
    gradients = jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2, 3))
    got = jax.pmap(gradients, devices=devices)(*stacked)
    for i, inputs in enumerate(many):
        want = jax.grad(loss, argnums=(0, 1, 2, 3))(*inputs)
        for name, a, b in zip(RESULTS[1:], got, want, strict=True):
            assert_close({name: np.asarray(a[i])}, {name: np.asarray(b)}, 1e-6)


@needs_library
def test_memory_of_the_threads_is_counted():
    shape = Shape("memory", 56, 56, 100, Spec((7, 7), 8))
    call = jax.jit(functools.partial(local_relation, **shape.options, implementation="native"))
    memory = call.lower(*make_inputs(shape)).compile().memory_analysis()
    plan = library.plan((1, 56, 56, 100, 56, 56, 13, 1, 7, 7, 8, 1, 1, 1, 0, 0, 0))
    assert memory.temp_size_in_bytes >= 4 * plan.forward_memory


@needs_library
def test_the_default_runs_it_and_exports_without_it():
    """An artefact must run where the library is not. A user who names it gets an error."""
    inputs = make_inputs(SMALL)
    default = jax.jit(jax.grad(functools.partial(loss, implementation=None), argnums=(0, 1, 2, 3)))
    calls = ("lrnet_cpu_forward", "lrnet_cpu_backward")
    text = default.lower(*inputs).as_text()
    assert all(f"@{call}" in text for call in calls)
    exported = jax.export.export(default)(*inputs)
    assert not any(call in exported.mlir_module() for call in calls)
    for name, a, b in zip(RESULTS[1:], exported.call(*inputs), default(*inputs), strict=True):
        assert_close({name: np.asarray(a)}, {name: np.asarray(b)}, 1e-5)
    with pytest.raises(ValueError, match="no compatibility guarantees"):
        jax.export.export(jax.jit(loss))(*inputs)


def test_the_default_without_a_library(monkeypatch):
    """Like float64, which it does not support, it falls to xla."""
    inputs = make_inputs(SMALL)
    monkeypatch.setattr(library, "obstacle", lambda: "1234")

    def default(*arrays):
        return local_relation(*arrays, **SMALL.options)

    assert "lrnet_cpu_forward" not in jax.jit(default).lower(*inputs).as_text()


def test_float64_is_refused():
    with jax.enable_x64(True):
        inputs = SMALL.abstract_inputs("float64")
        assert "use float32" in native.unsupported(SMALL.spec, inputs)


@pytest.fixture
def reload(monkeypatch):
    """Loads again from another file, without a trace for other tests."""

    def load_from(file):
        monkeypatch.setattr(library, "FILE", file)
        monkeypatch.setattr(library, "_load", functools.cache(library._load.__wrapped__))
        return library.obstacle()

    return load_from


def test_without_a_library(reload, monkeypatch, tmp_path):
    """The reason says how to get it, and the call by name repeats it."""
    monkeypatch.setattr(build, "compiler", lambda: None)
    reason = reload(tmp_path / "none.so")
    assert reason.startswith("built without a C++ compiler; xla runs")
    assert "install g++ or clang++, or name one in CXX, and run `python -m" in reason
    inputs = make_inputs(SMALL)
    assert implementations(*inputs, **SMALL.options)["native"] == (False, reason)
    with pytest.raises(ValueError, match=re.escape(reason)):
        local_relation(*inputs, **SMALL.options, implementation="native")


def test_with_a_compiler_but_not_built(reload, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "obstacle", lambda: None)
    assert "`python -m pallas_kernels.native`" in reload(tmp_path / "none.so")


def test_a_file_that_is_no_library(reload, tmp_path):
    file = tmp_path / build.LIBRARY
    file.write_bytes(b"1234")
    assert "does not load" in reload(file)


@needs_library
def test_a_library_of_other_sources(reload, monkeypatch):
    monkeypatch.setattr(build, "sources", lambda: "1234")
    assert "was built from other sources" in reload(library.FILE)


@needs_library
@pytest.mark.parametrize(("major", "minor", "fits"), [(0, 99, True), (1, 0, False), (0, 0, False)])
def test_another_interface_of_xla(reload, monkeypatch, major, minor, fits):
    """Newer minor versions of the interface run what older ones compiled."""
    monkeypatch.setattr(library, "_interface", lambda header: (major, minor))
    reason = reload(library.FILE)
    assert (reason is None) == fits
    assert fits or f"has {major}.{minor}" in reason

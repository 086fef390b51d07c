"""The switch runs the function of the platform at hand, and no other, under transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import mlir

from pallas_kernels import local_relation
from pallas_kernels.pallas import EXPORT_CHECKS, absent_gpu
from pallas_kernels.platform_switch import (
    by_platform,
    compiling_for,
    target_capability,
    without_switch,
)
from pallas_kernels.spec import Spec
from pallas_kernels.tools.shapes import Shape, make_inputs

X = jnp.arange(6.0).reshape(2, 3)
Y = jnp.ones(3)


def default(x, y):
    return x - y, jnp.sum(x)


def on_cpu(x, y):
    return x + y, jnp.sum(x)


def never(x, y):
    raise AssertionError("traced for a platform that is not its own")


# Like a Pallas kernel: it lowers for one platform alone.
cuda_only = Primitive("test_cuda_only")
cuda_only.def_abstract_eval(lambda x: x)
mlir.register_lowering(
    cuda_only, mlir.lower_fun(lambda x: x * 1234.0, multiple_results=False), platform="cuda"
)


def on_cuda(x, y):
    return cuda_only.bind(x + y), jnp.sum(x)


def assert_is_cpu(out):
    np.testing.assert_array_equal(out[0], X + Y)
    np.testing.assert_array_equal(out[1], 15.0)


def test_chooses_the_platform_at_hand():
    switch = by_platform(default=default, cpu=on_cpu, cuda=never)
    assert_is_cpu(switch(X, Y))
    assert_is_cpu(jax.jit(switch)(X, Y))
    switch = by_platform(default=default, cuda=never)
    np.testing.assert_array_equal(switch(X, Y)[0], X - Y)


def test_pytrees_keep_their_structure():
    """Records and None go in and come out; calls of another structure are another program."""

    def swap(pair):
        return {"first": pair["second"], "second": pair["first"]}

    switch = jax.jit(by_platform(default=swap, cpu=swap, cuda=never))
    for pair in ({"first": X, "second": None}, {"first": X, "second": (Y, X)}):
        got = switch(pair)
        assert jax.tree.structure(got) == jax.tree.structure(swap(pair))
        np.testing.assert_array_equal(got["second"], X)


def test_vmap():
    switch = by_platform(default=default, cpu=on_cpu)
    for axes in ((0, None), (1, 0), (None, 0)):
        x = jnp.stack([X, 2 * X], axes[0]) if axes[0] is not None else X
        y = jnp.stack([Y, 3 * Y]) if axes[1] is not None else Y
        got = jax.vmap(switch, in_axes=axes)(x, y)
        want = jax.vmap(on_cpu, in_axes=axes)(x, y)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    twice = jax.vmap(jax.vmap(switch, in_axes=(0, None)), in_axes=(0, None))
    want = jax.vmap(jax.vmap(on_cpu, in_axes=(0, None)), in_axes=(0, None))(X[None], Y)
    np.testing.assert_array_equal(twice(X[None], Y)[0], want[0])


def test_pmap_and_shard_map():
    switch = by_platform(default=default, cpu=on_cpu)
    devices = jax.devices()[:2]
    got = jax.pmap(switch, in_axes=(0, None), devices=devices)(X, Y)
    np.testing.assert_array_equal(got[0], X + Y)

    mesh = jax.sharding.Mesh(np.array(devices), "batch")
    rows, whole = jax.P("batch"), jax.P()
    sharded = jax.shard_map(
        lambda x, y: switch(x, y)[0], mesh=mesh, in_specs=(rows, whole), out_specs=rows
    )
    np.testing.assert_array_equal(jax.jit(sharded)(X, Y), X + Y)


def test_under_scan_remat_and_custom_vjp():
    switch = by_platform(default=default, cpu=on_cpu)

    @jax.custom_vjp
    def total(x):
        return switch(x, Y)[0].sum()

    total.defvjp(lambda x: (total(x), x), lambda x, g: (switch(x, g * Y)[0],))
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(total))(X), X + Y)
    last, _ = jax.lax.scan(lambda x, _: (switch(x, Y)[0], None), X, None, length=3)
    np.testing.assert_array_equal(last, X + 3 * Y)


def test_what_is_computed_again_may_be_a_part():
    """Where the backward pass needs some results alone, the function for these computes them."""
    switch = by_platform(
        default=default, cpu=on_cpu, parts={(True, False): lambda x, y: [10 * (x + y)]}
    )

    def function(kept):
        """Its derivative is the first result, of a layer that keeps so many results."""

        @jax.custom_vjp
        def total(x):
            return switch(x, Y)[0].sum()

        def forward(x):
            results = switch(x, Y)
            return results[0].sum(), results[:kept]

        total.defvjp(forward, lambda kept, g: (g * kept[0] + 0 * sum(kept[1:]),))
        return total

    again = jax.grad(jax.checkpoint(function(1)))
    np.testing.assert_array_equal(jax.grad(function(1))(X), X + Y)
    np.testing.assert_array_equal(jax.jit(again)(X), 10 * (X + Y))
    np.testing.assert_array_equal(jax.vmap(again)(jnp.stack([X, Y + X]))[1], 10 * (X + 2 * Y))
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(function(2)))(X), X + Y)


def exported(switch):
    return jax.export.export(jax.jit(switch), platforms=("cpu", "cuda"))(X, Y)


def test_export_for_two_platforms():
    """Each platform has a function of its own, even if one of them cannot be lowered elsewhere."""
    both = exported(by_platform(default=never_but_shapes(), cpu=on_cpu, cuda=on_cuda))
    assert "1.234000e+03" in both.mlir_module()  # the function for cuda is inside
    assert_is_cpu(both.call(X, Y))


def test_what_is_not_exported():
    """The program of this machine has its function, an exported one the default; also mapped."""
    switch = by_platform(default, not_exported=["cpu"], cpu=on_cpu, cuda=on_cuda)
    assert_is_cpu(jax.jit(switch)(X, Y))
    both = exported(switch)
    assert "1.234000e+03" in both.mlir_module()
    np.testing.assert_array_equal(both.call(X, Y)[0], X - Y)
    mapped = jax.vmap(switch, in_axes=(0, None))
    np.testing.assert_array_equal(jax.jit(mapped)(X[None], Y)[0][0], X + Y)
    alone = jax.export.export(jax.jit(mapped), platforms=("cpu",))(X[None], Y)
    np.testing.assert_array_equal(alone.call(X[None], Y)[0][0], X - Y)


def never_but_shapes():
    """A default for shapes alone: it fails if it is lowered, which no platform needs here."""
    unlowerable = Primitive("test_unlowerable")
    unlowerable.def_abstract_eval(lambda x: x)
    return lambda x, y: (unlowerable.bind(x + y), jnp.sum(x))


def test_shapes_stand_for_a_default_that_is_not_needed():
    """It is then traced for no platform but its own, under vmap and in custom rules too."""
    switch = by_platform(never, shapes=default, cpu=on_cpu)
    assert_is_cpu(jax.jit(switch)(X, Y))
    mapped = jax.jit(jax.vmap(switch, in_axes=(0, None)))(jnp.stack([X, X]), Y)
    np.testing.assert_array_equal(mapped[0], jnp.stack([X + Y, X + Y]))
    np.testing.assert_array_equal(mapped[1], [15.0, 15.0])
    mapped = jax.jit(jax.vmap(switch, in_axes=(None, 0)))(X, jnp.stack([Y, 2 * Y]))
    np.testing.assert_array_equal(mapped[1], [15.0, 15.0])  # zeros know of no mapped axis


def test_shapes_are_not_those_of_a_default():
    """The default runs on the platforms that have nothing else."""
    switch = by_platform(default, shapes=on_cpu, cuda=never)
    np.testing.assert_array_equal(jax.jit(switch)(X, Y)[0], X - Y)


def test_exported_artifact_is_restored():
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to serialise")
    both = exported(by_platform(default=default, cpu=on_cpu, cuda=on_cuda))
    restored = jax.export.deserialize(both.serialize())
    assert restored.platforms == ("cpu", "cuda")
    assert_is_cpu(restored.call(X, Y))


def test_export_for_another_platform_alone():
    switch = by_platform(default=default, cpu=never, cuda=on_cuda)
    module = jax.export.export(jax.jit(switch), platforms=("cuda",))(X, Y).mlir_module()
    assert "1.234000e+03" in module
    module = jax.export.export(jax.jit(switch), platforms=("tpu",))(X, Y).mlir_module()
    assert "subtract" in module


def test_equal_work_is_traced_and_lowered_once():
    traces = []

    @functools.cache
    def switch():
        def counted(x, y):
            traces.append(1)
            return on_cpu(x, y)

        return by_platform(default=default, cpu=jax.jit(counted))

    def network(x):
        for _ in range(5):
            x, _ = switch()(x, Y)
        return x

    lowered = jax.jit(network).lower(X)
    assert len(traces) == 1
    assert lowered.as_text().count("func.func private @counted") == 1


def test_a_converter_sees_the_default_alone():
    def traced():
        switch = by_platform(default, cpu=on_cpu)
        return str(jax.make_jaxpr(lambda *arrays: switch(*arrays))(X, Y))

    with without_switch():
        assert "platform_switch" not in traced()
    assert "platform_switch" in traced()


def test_one_process_writes_kernels_for_several_gpus():
    """A call is traced again for another GPU."""
    shape = Shape("small", 5, 7, 16, Spec((3, 3), 8))
    inputs = make_inputs(shape)

    def text(capability):
        def run(*inputs):
            return local_relation(*inputs, **shape.options)

        exporter = export.export(jax.jit(run), platforms=("cuda",), disabled_checks=EXPORT_CHECKS)
        with absent_gpu(), compiling_for(capability):
            return exporter(*inputs).mlir_module()

    assert target_capability() is None
    with compiling_for(9.0), compiling_for(10.0):
        assert target_capability() == 10.0
    found = ["fma.rn.f32x2" in text(capability) for capability in (9.0, 10.0, 9.0)]
    assert found == [False, True, False]

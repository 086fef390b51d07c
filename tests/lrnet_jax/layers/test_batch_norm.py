"""Batch normalisation agrees with flax, with numpy, and with itself on several devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lrnet_jax.layers.batch_norm import BatchNorm
from pallas_kernels.native import channel_sums


def images(shape=(8, 5, 3, 6), mean=0.7):
    return np.random.default_rng(0).normal(mean, 2.0, shape).astype(np.float32)


def with_weights(norm):
    rng = np.random.default_rng(1)
    for variable, least in ((norm.scale, 0.5), (norm.bias, -1), (norm.mean, -1), (norm.var, 0.5)):
        variable[...] = jnp.asarray(rng.uniform(least, 2, variable.shape), jnp.float32)
    return norm


def functions(module):
    """The functions of a module's text. JAX 0.10 repeats some, with a number after the name."""
    numbered = re.compile(r"(@\w+?)_\d+\b")
    return {numbered.sub(r"\1", text).strip(" \n}") for text in module.split("func.func ")}


def test_agrees_with_flax_forward_backward_and_running_averages():
    x = jnp.asarray(images())
    ours = with_weights(BatchNorm(6))
    theirs = with_weights(nnx.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0)))
    cotangent = jnp.asarray(np.random.default_rng(2).normal(size=x.shape), jnp.float32)

    def loss(norm, x):
        return jnp.sum(norm(x) * cotangent)

    for norm in (ours, theirs):
        norm.train()
    gradients = [nnx.grad(loss, argnums=(0, 1))(norm, x) for norm in (ours, theirs)]
    for a, b in zip(*(jax.tree.leaves(g) for g in gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            getattr(ours, name)[...], getattr(theirs, name)[...], rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    for norm in (ours, theirs):
        norm.eval()
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_groups_of_images_have_statistics_of_their_own():
    x = images()
    norm = with_weights(BatchNorm(6, group_images=2))
    before, scale, bias = (np.asarray(v[...]) for v in (norm.mean, norm.scale, norm.bias))
    got = norm(jnp.asarray(x))
    means, variances = [], []
    for start in range(0, 8, 2):
        part = x[start : start + 2].astype(np.float64)
        mean, var = part.mean((0, 1, 2)), part.var((0, 1, 2))
        want = scale * (part - mean) / np.sqrt(var + 1e-5) + bias
        np.testing.assert_allclose(got[start : start + 2], want, atol=2e-5)
        means.append(mean)
        variances.append(var)
    np.testing.assert_allclose(norm.mean[...], 0.9 * before + 0.1 * np.mean(means, 0), rtol=1e-5)


def input_gradient(norm, x, cotangent):
    return nnx.grad(lambda norm, x: jnp.sum(norm(x) * cotangent), argnums=1)(norm, x)


def test_gradient_of_groups_is_that_of_each_alone():
    x, cotangent = (jnp.asarray(images(mean=mean)) for mean in (0.7, 0.2))
    grouped = with_weights(BatchNorm(6, group_images=4))
    d_x = input_gradient(grouped, x, cotangent)
    for part in (slice(0, 4), slice(4, 8)):
        alone = with_weights(BatchNorm(6))
        want = input_gradient(alone, x[part], cotangent[part])
        np.testing.assert_allclose(d_x[part], want, rtol=1e-5, atol=1e-6)


def test_groups_make_four_devices_equal_to_one():
    x = jnp.asarray(images())
    norm = with_weights(BatchNorm(6, group_images=2))
    graphdef, state = nnx.split(norm)

    def step(state, x):
        norm = nnx.merge(graphdef, state)
        y = norm(x)
        return y, nnx.state(norm)

    one, state_one = jax.jit(step)(state, x)
    four, state_four = jax.pmap(step, in_axes=(None, 0))(state, x.reshape(4, 2, *x.shape[1:]))
    np.testing.assert_allclose(four.reshape(x.shape), one, rtol=1e-6, atol=1e-6)
    for a, b in zip(jax.tree.leaves(state_one), jax.tree.leaves(state_four), strict=True):
        np.testing.assert_allclose(a, np.mean(b, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_axis_name_takes_statistics_over_devices(relu):
    x, cotangent = (jnp.asarray(images(mean=mean)) for mean in (0.7, 0.2))
    cotangent = cotangent * jnp.linspace(-1, 2, 8)[:, None, None, None]

    def gradients(axis_name):
        graphdef, state = nnx.split(with_weights(BatchNorm(6, axis_name=axis_name)))

        def step(state, x, cotangent):
            def run(params, x):
                return nnx.merge(graphdef, nnx.merge_state(state, params), copy=True)(x, relu=relu)

            y, vjp = jax.vjp(run, nnx.filter_state(state, nnx.Param), x)
            return y, *vjp(cotangent)

        return step, state

    step, state = gradients(None)
    y, d_params, d_x = step(state, x, cotangent)
    step, state = gradients("batch")
    shards = [array.reshape(4, 2, *x.shape[1:]) for array in (x, cotangent)]
    shared = jax.pmap(step, axis_name="batch", in_axes=(None, 0, 0))(state, *shards)
    np.testing.assert_allclose(shared[0].reshape(x.shape), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shared[2].reshape(x.shape), d_x, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(shared[1]), jax.tree.leaves(d_params), strict=True):
        np.testing.assert_allclose(np.sum(a, 0), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["training", "groups", "evaluation"])
def test_relu_in_the_same_rule_is_relu_after_it(mode):
    x, cotangent = (jnp.asarray(images(mean=mean)) for mean in (0.7, 0.2))
    norm = with_weights(BatchNorm(6, group_images=4 if mode == "groups" else None))
    norm.set_attributes(use_running_average=mode == "evaluation")
    graphdef, state = nnx.split(norm)

    def run(relu, state, x):
        norm = nnx.merge(graphdef, state, copy=True)
        y = norm(x, relu=True) if relu else jax.nn.relu(norm(x))
        return y, nnx.state(norm, nnx.BatchStat)

    def gradients(relu):
        params, rest = nnx.split_state(state, nnx.Param, ...)
        y, vjp, statistics = jax.vjp(
            lambda params, x: run(relu, nnx.merge_state(params, rest), x), params, x, has_aux=True
        )
        return y, statistics, vjp(cotangent)

    ours, theirs = jax.jit(gradients, static_argnums=0)(True), gradients(False)
    assert 0.2 < np.mean(np.asarray(ours[0]) == 0) < 0.8
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    if mode == "evaluation":  # forward mode as well
        ours, theirs = (
            jax.jvp(lambda x, relu=relu: run(relu, state, x)[0], (x,), (cotangent,))[1]
            for relu in (True, False)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_the_backward_pass_keeps_nothing_but_its_input(relu):
    graphdef, state = nnx.split(BatchNorm(6))
    x = jnp.asarray(images(), jnp.bfloat16)

    def run(x):
        return nnx.merge(graphdef, state, copy=True)(x, relu=relu)

    residuals = jax.tree.leaves(jax.vjp(run, x)[1])
    large = [leaf for leaf in residuals if leaf.size == x.size]
    assert [leaf.dtype for leaf in large] == [jnp.bfloat16]


@pytest.mark.skipif(channel_sums.unavailable() is not None, reason="needs the library in C++")
@pytest.mark.parametrize("relu", [False, True])
def test_the_library_makes_no_difference(relu, monkeypatch):
    """Nor does a program hold it that is exported or for a GPU."""
    graphdef, state = nnx.split(with_weights(BatchNorm(19, group_images=2)))
    x = jnp.asarray(images((4, 5, 3, 19)))

    def gradients():
        def run(state, x):
            norm = nnx.merge(graphdef, state, copy=True)
            return jnp.sum(norm(x, relu=relu) * x), nnx.state(norm, nnx.BatchStat)

        return jax.jit(jax.value_and_grad(run, argnums=1, has_aux=True))

    native = gradients()
    for name in ("moments", "products"):
        assert f"@lrnet_cpu_{name}" in native.lower(state, x).as_text()
    assert "lrnet_cpu" not in jax.export.export(native)(state, x).mlir_module()
    on_gpu = native.trace(state, x).lower(lowering_platforms=("cuda",)).as_text()
    assert "lrnet_cpu" not in on_gpu
    monkeypatch.setattr(channel_sums, "unavailable", lambda: "not built")
    plain = gradients()
    assert "lrnet_cpu" not in plain.lower(state, x).as_text()
    for a, b in zip(*(jax.tree.leaves(f(state, x)) for f in (native, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    if relu:  # without one, gain and offset come to the switch and are not used
        plain_on_gpu = plain.trace(state, x).lower(lowering_platforms=("cuda",)).as_text()
        assert functions(on_gpu) == functions(plain_on_gpu)


def test_large_means_do_not_cancel_the_variance():
    x = images(mean=3000.0)
    norm = BatchNorm(6)
    norm.mean[...] = jnp.full(6, 3001.0)  # as training leaves it
    want = (x - x.mean((0, 1, 2), np.float64)) / np.sqrt(x.var((0, 1, 2), np.float64) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), want, atol=2e-3)


def test_half_precision_keeps_its_dtype_and_float32_statistics():
    x = jnp.asarray(images())
    norm, exact = BatchNorm(6), BatchNorm(6)
    got = norm(x.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == jnp.float32
    np.testing.assert_allclose(got.astype(jnp.float32), exact(x), atol=0.03)


def test_errors():
    with pytest.raises(ValueError, match=r"batch of 8 images [(]per device[)] is not a multiple"):
        BatchNorm(6, group_images=3)(jnp.asarray(images()))
    with pytest.raises(ValueError, match="group_images must be at least 1, got 0"):
        BatchNorm(6, group_images=0)
    with pytest.raises(ValueError, match="exclude each other"):
        BatchNorm(6, group_images=2, axis_name="batch")

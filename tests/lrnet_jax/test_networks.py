"""Every network of the zoo, made small: forward, backward, features, odd sizes, dtypes, folding."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.layers.channel_transformation import NO_PADDING
from lrnet_jax.layers.pooling import max_pool_3x3
from lrnet_jax.model_zoo import create_from_variant

SMALL = {"depths": (1, 1), "width": 6, "stage_channels": (16, 24), "stem_channels": 12}
SMALL |= {"kernel_size": 3, "stem_kernel_size": 3, "full_image_pool": (2, 1), "prior_hidden": 8}
# The reference compiles fastest. The tests of the operator check that implementations agree.
SMALL |= {"implementation": "reference"}


# Compiling takes nearly all the time, and at this level half of it.
FAST = {"xla_backend_optimization_level": 0}


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def small(name, **fields):
    return dataclasses.replace(lrnet_jax.get_variant(name), **SMALL | fields)


def create(variant, num_classes=5):
    return create_from_variant(variant, num_classes, nnx.Rngs(0))


def state_of(tree):
    """Gradients of parameters: nnx.grad returns a state, and with the next Flax a module.

    That module also has gradients of the running averages.
    """
    return nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree


def statistics(model):
    """Running averages as arrays, because the next Flax does not update a transform's argument."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def paths(state):
    leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(state_of(state)))
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


CASES = {name: small(name) for name in lrnet_jax.list_models() if "50" not in name}
CASES |= {
    "lrnet26": small("lrnet26", implementation=None),
    "full image": small("lrnet26", scope="full", prior="table", image_size=21),
    "remat, zero gamma, conv stem": small(
        "lrnet26", remat="blocks", zero_gamma=True, stem="convolution", prior="none"
    ),
}


def never_learns(path, variant):
    """Whether a gradient is zero by construction, but for rounding and a norm's epsilon."""
    # A softmax does not change when all its logits shift alike.
    names = ["prior.output.bias", "phi.bias"]
    # A normalisation takes a constant out of its input. One follows `g`. After the first stage's
    # non-local block, it follows the 1x1 convolutions that begin the next stage's branch and
    # shortcut, both of which pass a constant on as a constant.
    names += ["g.bias", "stages.0.0.non_local.norm.bias"]
    # It takes out a scale, too, which a ReLU and a depthwise convolution leave to each channel.
    if variant.operator == "depthwise":
        names += ["branch.0.norm.scale"]
    return path.endswith(tuple(names))


@pytest.mark.parametrize("name", [name for name in CASES if "101" not in name])
def test_forward_backward_and_features(name):
    variant = CASES[name]
    model = create(variant)
    # Scales that start at zero would hide the gradients behind them.
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, lrnet_jax.layers.BatchNorm):
            norm.scale[...] = jnp.ones_like(norm.scale[...])
    x, cotangent = images(2, 21, 21, 3), images(2, 5)

    def loss(model, x):
        value = jnp.sum(model(x) * cotangent)
        return value, statistics(model)

    before = paths(nnx.state(model, nnx.BatchStat))
    graphdef, state = nnx.split(model)
    # At level 0, gradients of non-local networks with pooling are nan.
    whole_image = variant.operator == "non_local" or variant.non_local_blocks or variant.uses_pool

    @functools.partial(jax.jit, compiler_options=None if whole_image else FAST)
    def gradients(state, x):
        return nnx.grad(loss, has_aux=True)(nnx.merge(graphdef, state, copy=True), x)

    grads, after = gradients(state, x)
    features = nnx.eval_shape(lambda model, x: model.features(x), model, x)
    sizes = [11, 6 if variant.stem_pool else 11]
    sizes.append((sizes[-1] + 1) // 2)
    assert {name: map_.shape for name, map_ in features.items()} == {
        f"res{i + 1}": (2, size, size, channels)
        for i, (size, channels) in enumerate(zip(sizes, (12, 16, 24), strict=True))
    }
    # Terms of up to 5 are summed, so rounding leaves about 1e-6 of a gradient that is zero.
    for path, gradient in paths(grads).items():
        assert np.isfinite(gradient).all(), path
        if never_learns(path, variant):
            assert np.abs(gradient).max() < 1e-4, path
        else:
            assert np.abs(gradient).max() > 1e-5, path
    for (path, old), new in zip(before.items(), jax.tree.leaves(after), strict=True):
        assert not np.array_equal(old, new), path


@pytest.mark.parametrize("scope", ["local", "full"])
def test_a_new_deep_network_has_gradients_of_one_size(scope):
    """With queries and keys of He's size the stem's are 5.6 and 3.7 times the head's."""
    fields = {
        "depths": (8,),
        "width": 16,
        "stage_channels": (64,),
        "full_image_pool": (1,),
        "kernel_size": 5,
    }
    model = create(small("lrnet26", scope=scope, **fields))
    x = images(8, 24, 24, 3)
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, compiler_options=FAST)
    def gradients(state, x):
        model = nnx.merge(graphdef, state, copy=True)
        return nnx.grad(lambda model, x: jnp.mean(model(x)[:, 0]))(model, x)

    grads = gradients(state, x)
    norms = [
        np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(nnx.to_pure_dict(part))))
        for part in (state_of(grads)["stem"], state_of(grads)["head"])
    ]
    assert norms[0] < 3 * norms[1]


def test_state_is_parameters_and_statistics_only_in_float32():
    model = create(CASES["lrnet26_nl"])
    kinds = {type(v) for v in jax.tree.leaves(nnx.state(model), is_leaf=is_variable)}
    assert kinds == {nnx.Param, nnx.BatchStat}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"float32"}


def is_variable(value):
    return isinstance(value, nnx.Variable)


@pytest.mark.parametrize(
    ("name", "size"), [("lrnet50", (97, 130)), ("resnet50", (65, 224)), ("lrnet18", (224, 224))]
)
def test_full_networks_trace_at_any_size(name, size):
    def logits():
        model = lrnet_jax.create_model(name, num_classes=7, rngs=nnx.Rngs(0))
        return model(jnp.zeros((2, *size, 3)))

    out = nnx.eval_shape(logits)
    assert (out.shape, out.dtype) == ((2, 7), jnp.float32)


@nnx.jit
def apply(model, x):
    return model(x)


def evaluate(model, x):
    model.eval()
    return np.asarray(apply(model, x))


def trained(variant, x):
    """A network whose running averages and priors differ from those of a fresh network."""
    model = create(variant)
    rng = np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if "prior" in path:
            leaf[...] = leaf[...] + jax.device_put(rng.normal(0, 0.5, leaf.shape).astype("f4"))
    after = nnx.jit(lambda model, x: (model(x), statistics(model))[1])(model, x)
    state = nnx.state(model, nnx.BatchStat)
    nnx.replace_by_pure_dict(state, after)
    nnx.update(model, state)
    return model


@pytest.mark.parametrize("scope", ["local", "full"])
def test_folding_keeps_logits_and_can_be_rebuilt(scope):
    variant = small("lrnet26", scope=scope, image_size=16)
    x = images(2, 16, 16, 3)
    model = trained(variant, x)
    folded = lrnet_jax.fold_priors(model)
    want = evaluate(model, x)
    np.testing.assert_allclose(evaluate(folded, x), want, rtol=1e-5, atol=1e-5)

    assert model.variant.prior == "network"  # the original stays trainable
    assert any("prior.hidden" in path for path in paths(nnx.state(model)))
    assert not any("prior.hidden" in path for path in paths(nnx.state(folded)))
    rebuilt = create(folded.variant)
    nnx.update(rebuilt, nnx.state(folded))
    np.testing.assert_array_equal(evaluate(rebuilt, x), evaluate(folded, x))


def test_bfloat16_is_close_to_float32():
    x = images(2, 16, 16, 3)
    variant = small("lrnet26")
    exact = trained(variant, x)
    half = create(dataclasses.replace(variant, dtype="bfloat16"))
    nnx.update(half, nnx.state(exact))
    a, b = evaluate(exact, x), evaluate(half, x)
    assert b.dtype == np.float32
    features = nnx.eval_shape(lambda model, x: model.features(x), half, x)
    assert {feature.dtype.name for feature in features.values()} == {"bfloat16"}
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


def test_groups_of_images_reach_every_batch_norm():
    variant = small("resnet26", batch_norm_images=2)
    model = create(variant)
    x = images(4, 9, 9, 3)
    np.testing.assert_allclose(apply(model, x)[2:], apply(model, x[2:]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="batch of 3 images"):
        model(x[:3])


@pytest.mark.parametrize("size", [(7, 8), (1, 2)])
def test_stem_pool_is_a_max_pool(size):
    x = images(2, *size, 3)
    want = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    np.testing.assert_array_equal(max_pool_3x3(x), want)


def test_feature_info_describes_the_features():
    for name in ("lrnet26", "lrnet_small"):
        model = create(small(name))
        maps = nnx.eval_shape(lambda model, x: model.features(x), model, images(2, 32, 32, 3))
        assert {info.name: (2, 32 // info.stride, 32 // info.stride, info.channels)
                for info in model.feature_info} == {
            name: map_.shape for name, map_ in maps.items()
        }  # fmt: skip
        assert model.num_features == model.feature_info[-1].channels == 24


def test_a_head_for_other_classes():
    model = create(small("resnet26"))
    body = paths(nnx.state(model.stages))
    model.reset_head(9)
    assert model.num_classes == 9
    assert model(images(2, 8, 8, 3)).shape == (2, 9)
    after = paths(nnx.state(model.stages, nnx.Param))
    assert all(np.array_equal(leaf, body[path]) for path, leaf in after.items())
    kernel = np.asarray(model.head.kernel[...])
    model.reset_head(9, rngs=nnx.Rngs(1))
    assert not np.array_equal(kernel, model.head.kernel[...])
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        model.reset_head(0)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_integers_are_refused(dtype):
    """A network that takes levels of 0 to 255 for normalised values guesses without a word."""
    model = create(small("resnet26"))
    for function in (model, model.features):
        with pytest.raises(TypeError, match=rf"floating point, got {dtype}; use .*load_classifier"):
            function(np.zeros((2, 8, 8, 3), dtype))


def test_channels_first_are_answered_by_the_transpose():
    model = create(small("resnet26"))
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 9\), .* use images.transpose\(0, 2, 3, 1\)"):
        model(images(2, 3, 8, 9))


def test_errors():
    model = create(small("resnet26"))
    with pytest.raises(ValueError, match=r"images must be \(B, H, W, 3\), got \(8, 8, 3\)"):
        model(jnp.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        create(small("resnet26"), 0)
    full = create(small("lrnet26", scope="full"))
    with pytest.raises(ValueError, match="image_size to the network"):
        lrnet_jax.fold_priors(full)


def test_recomputation_changes_nothing_and_repeats_one_product_of_a_block():
    x, cotangent = images(2, 13, 13, 3), images(2, 5)
    found = {}
    fields = {"stage_channels": (16,), "implementation": "xla"}

    def lowered(remat, depth):
        model = create(small("lrnet26", remat=remat, depths=(depth,), **fields))
        graphdef, state = nnx.split(model)

        def gradients(state, x):
            def loss(model, x):
                return jnp.sum(model(x) * cotangent)

            model = nnx.merge(graphdef, state, copy=True)
            return nnx.grad(loss)(model, x), nnx.state(model, nnx.BatchStat)

        program = jax.jit(gradients).lower(state, x)
        # Those of all pixels, and not those of the stem's statistics and of the priors.
        products = [
            line
            for line in program.as_text().splitlines()
            if re.search("stablehlo.dot_general|lrnet_cpu_(weight_gradient|row_product)", line)
            and max(map(int, re.findall(r"(\d+)x", line))) >= 2 * 4 * 4
        ]
        return program, state, len(products)

    for remat, again in (("none", 0), ("stem", 0), ("blocks", 1)):
        program, state, products = lowered(remat, depth=1)
        found[remat] = program.compile()(state, x), products
        assert found[remat][1] == found["none"][1] + again > 20, remat
        for a, b in zip(*(jax.tree.leaves(found[key][0]) for key in (remat, "none")), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + np.max(np.abs(b))))
    # Two of six blocks.
    assert lowered("blocks", depth=6)[2] == lowered("none", depth=6)[2] + 2


@pytest.mark.parametrize("remat", ["stem", "blocks"])
def test_a_recomputing_network_may_be_a_constant(remat):
    """In evaluation mode it is not written to, and computes what it does without recomputation."""
    fields = {"depths": (1,), "stage_channels": (16,), "implementation": "xla"}
    model, plain = (create(small("lrnet26", remat=name, **fields)) for name in (remat, "none"))
    x = images(2, 13, 13, 3)
    for network in (model, plain):
        network.eval()
    compiled, expected = (
        jax.jit(lambda x, n=network: jax.vjp(n, x)[1](jnp.ones((2, 5))))(x)
        for network in (model, plain)
    )
    np.testing.assert_array_equal(compiled, expected)
    np.testing.assert_allclose(model(x), plain(x), rtol=1e-5)


def test_recomputation_of_older_checkpoints_has_a_name():
    assert lrnet_jax.Variant(remat=False).remat == "none"
    assert lrnet_jax.Variant(remat=True).remat == "blocks"
    with pytest.raises(ValueError, match="remat must be one of none, stem, blocks; got 'all'"):
        lrnet_jax.Variant(remat="all")


def test_padded_channels_change_nothing():
    """In bfloat16 the channels inside a block are multiples of 8, the additional ones zeros."""
    variant = small("lrnet26", width=11, depths=(1,), stage_channels=(16,), dtype="bfloat16")
    block = create(variant).stages[0][0]
    x = images(2, 5, 5, 12).astype(jnp.bfloat16)
    cotangent = images(2, 5, 5, 16)
    multiples = block.multiples
    assert multiples == ((1, 8), (8, 8), (8, 1))
    results = []
    for block.multiples in (multiples, (NO_PADDING,) * 3):
        graphdef, state = nnx.split(block)

        @jax.jit
        def run(state, x, graphdef=graphdef):
            def loss(block, x):
                return jnp.sum(block(x) * cotangent)

            block = nnx.merge(graphdef, state, copy=True)
            return nnx.grad(loss, argnums=(0, 1))(block, x), nnx.state(block, nnx.BatchStat)

        assert ("bf16[2,5,5,11]" in str(jax.make_jaxpr(run)(state, x))) == (len(results) == 1)
        results.append(run(state, x))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert a.shape == b.shape
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        # Sums of more terms round differently in bfloat16.
        np.testing.assert_allclose(a, b, atol=0.02 * float(jnp.max(jnp.abs(b))) + 1e-4)

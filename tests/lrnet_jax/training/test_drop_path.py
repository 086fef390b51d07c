"""Drop path: how often a block is skipped, and what is computed then."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.training.drop_path import draw_branch_scales

KEY = jax.random.key(3)
INDEX = np.arange(20000, dtype=np.int32)


@functools.cache
def drawn(rate=0.4, blocks=5, key=0):
    draw = functools.partial(draw_branch_scales, rate=rate, blocks=blocks)
    return np.asarray(jax.jit(draw)(INDEX, jax.random.fold_in(KEY, key)))


def test_later_blocks_are_skipped_more_often():
    """Each block's count is binomial: within 5 standard deviations of its mean."""
    scales = drawn()
    assert (scales.shape, scales.dtype) == ((5, len(INDEX)), np.float32)
    for block, (row, rate) in enumerate(zip(scales, [0.08, 0.16, 0.24, 0.32, 0.4], strict=True)):
        deviation = np.sqrt(rate * (1 - rate) / len(INDEX))
        assert abs(np.mean(row == 0) - rate) < 5 * deviation, block
        np.testing.assert_allclose(row[row > 0], 1 / (1 - rate), rtol=1e-6)


def test_draws_are_independent_over_blocks_images_and_steps():
    """Correlations of independent draws are within 5 / sqrt(n) of 0."""
    skipped = drawn() == 0
    pairs = [(skipped[i], skipped[j]) for i in range(5) for j in range(i)]
    pairs += [(skipped[4][1:], skipped[4][:-1]), (skipped[4], drawn(key=1)[4] == 0)]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(INDEX))


def test_any_split_over_devices_draws_the_same():
    draw = functools.partial(draw_branch_scales, rate=0.4, blocks=5)
    split = jax.pmap(draw, in_axes=(0, None))(INDEX.reshape(4, -1), jax.random.fold_in(KEY, 0))
    np.testing.assert_array_equal(np.concatenate(np.asarray(split), axis=1), drawn())


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_a_branch_is_scaled_as_its_last_normalisation_would_be(remat):
    """gamma and beta of that normalisation, times the factor: one image after the other."""
    variant = lrnet_jax.Variant(
        depths=(2, 1), width=4, stage_channels=8, stem_channels=4, stem_kernel_size=3,
        kernel_size=3, operator="convolution", stem="convolution", remat=remat,
    )  # fmt: skip
    model = lrnet_jax.create_from_variant(variant, 5, nnx.Rngs(0))
    model.eval()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    scales = np.array([[0, 1, 2], [1.25, 0, 1], [1, 0.5, 0]], np.float32)  # (blocks, B)
    got = nnx.jit(lambda model, *inputs: model(*inputs))(model, images, scales)

    @nnx.jit
    def scaled(model, image, factors):
        for block, factor in zip([b for s in model.stages for b in s], factors, strict=True):
            norm = block.branch[-1].norm
            norm.scale[...] = norm.scale[...] * factor
            norm.bias[...] = norm.bias[...] * factor
        return model(image[None])[0]

    for row, image in enumerate(images):
        want = scaled(nnx.clone(model), image, scales[:, row])
        np.testing.assert_allclose(got[row], want, rtol=1e-5, atol=1e-5)
    assert not np.allclose(got, model(images), atol=1e-2)


def test_a_rate_that_is_no_share():
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        draw_branch_scales(INDEX, KEY, rate=1.0, blocks=2)

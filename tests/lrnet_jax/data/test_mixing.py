"""Mixup and CutMix, judged by their pixels: no draw of the implementation is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lrnet_jax.data.mixing import mix, swap_pairs

SIZE, HEIGHT, WIDTH = 512, 12, 20
KEY = jax.random.key(5)
ALPHAS = {"mixup": (0.4, 0.0), "cutmix": (0.0, 1.0), "both": (0.4, 1.0)}


@functools.cache
def images():
    return np.random.default_rng(0).normal(size=(SIZE, HEIGHT, WIDTH, 3)).astype(np.float32)


@functools.cache
def mixed(kind, devices=1, key=0):
    """Images and shares of the whole batch, mixed on some devices, a block each."""
    mixup_alpha, cutmix_alpha = ALPHAS[kind]
    step = jax.pmap(
        functools.partial(mix, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha),
        in_axes=(0, 0, None),
        devices=jax.devices()[:devices],
    )
    rows = images().reshape(devices, -1, *images().shape[1:])
    index = np.arange(SIZE, dtype=np.int32).reshape(devices, -1)
    got, share = step(rows, index, jax.random.fold_in(KEY, key))
    return np.asarray(got).reshape(images().shape), np.asarray(share).reshape(-1)


def partners():
    """Rows 0, 1, 2, 3, .. in the order 1, 0, 3, 2, .."""
    return images()[[i + 1 if i % 2 == 0 else i - 1 for i in range(SIZE)]]


def from_partner(got):
    """(SIZE, H, W) bool where a pixel is the partner's; None for rows with blended pixels."""
    own, other = ((got == source).all(-1) for source in (images(), partners()))
    return [o if (o | s).all() else None for s, o in zip(own, other, strict=True)]


def boxes(count, alpha, rng):
    """What CutMix's boxes leave of an image, and the rows and columns in the middle of each.

    Algorithm 1 of its paper, one box at a time.
    """
    shares, middles = [], []
    for _ in range(count):
        ratio = np.sqrt(1 - rng.beta(alpha, alpha))
        h, w = int(HEIGHT * ratio), int(WIDTH * ratio)
        y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
        top, bottom = np.clip([y - h // 2, y + h // 2], 0, HEIGHT)
        left, right = np.clip([x - w // 2, x + w // 2], 0, WIDTH)
        shares.append(1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH))
        if shares[-1] < 1:
            middles.append(((top + bottom - 1) / 2, (left + right - 1) / 2))
    return np.array(shares), np.array(middles)


def test_mixup_blends_each_image_with_its_partner():
    got, share = mixed("mixup")
    for row in range(SIZE):
        want = share[row] * images()[row] + (1 - share[row]) * partners()[row]
        np.testing.assert_allclose(got[row], want, rtol=1e-5, atol=1e-6)
    assert stats.kstest(share, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    # Both rows of a pair draw for themselves.
    assert abs(np.corrcoef(share[::2], share[1::2])[0, 1]) < 0.2


def test_cutmix_pastes_a_box_and_counts_its_pixels():
    got, share = mixed("cutmix")
    middles = []
    for row, pasted in enumerate(from_partner(got)):
        assert pasted is not None, "every pixel is one image's or the other's"
        assert share[row] == pytest.approx(1 - pasted.mean(), abs=1e-6)
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        if len(rows):
            box = pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.all()
            assert box.size == pasted.sum()
            middles.append((rows.mean(), columns.mean()))
    want, want_middles = boxes(4000, 1.0, np.random.default_rng(1))
    assert stats.ks_2samp(share, want).pvalue > 0.01
    for axis in (0, 1):
        drawn = np.array(middles)[:, axis]
        assert stats.ks_2samp(drawn, want_middles[:, axis]).pvalue > 0.01


def test_both_take_turns():
    got, share = mixed("both")
    cut = np.array([box is not None for box in from_partner(got)])
    assert 0.42 < cut.mean() < 0.58
    assert abs(np.corrcoef(cut[::2], cut[1::2])[0, 1]) < 0.2
    # A share of nearly 1 is rounded to the image itself, which counts as cut: leave those out.
    blended = share[~cut]
    want = np.random.default_rng(1).beta(0.4, 0.4, 4000)
    inside = want[(want > 1e-4) & (want < 1 - 1e-4)]
    assert stats.ks_2samp(blended[(blended > 1e-4) & (blended < 1 - 1e-4)], inside).pvalue > 0.01


@pytest.mark.parametrize("kind", ALPHAS)
def test_the_number_of_devices_changes_nothing(kind):
    np.testing.assert_array_equal(mixed(kind, 1)[0], mixed(kind, 4)[0])
    np.testing.assert_array_equal(mixed(kind, 1)[1], mixed(kind, 4)[1])


def test_another_key_mixes_otherwise():
    assert (mixed("both")[1] != mixed("both", key=1)[1]).mean() > 0.9


def test_no_alpha_leaves_images_alone():
    got, share = mix(images(), np.arange(SIZE), KEY, mixup_alpha=0, cutmix_alpha=0)
    np.testing.assert_array_equal(got, images())
    np.testing.assert_array_equal(share, np.ones(SIZE))


def test_the_dtype_is_kept():
    half = jnp.asarray(images()[:2], jnp.bfloat16)
    got = jax.eval_shape(lambda x: mix(x, np.arange(2), KEY, mixup_alpha=1, cutmix_alpha=1), half)
    assert (got.images.dtype, got.share.dtype) == (jnp.bfloat16, jnp.float32)


def test_pairs_change_places():
    np.testing.assert_array_equal(swap_pairs(jnp.arange(6)), [1, 0, 3, 2, 5, 4])


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="mixed in pairs: their number must be even, got 3"):
        mix(images()[:3], np.arange(3), KEY, mixup_alpha=1, cutmix_alpha=0)
    with pytest.raises(ValueError, match="cutmix_alpha must be at least 0, got -1"):
        mix(images()[:2], np.arange(2), KEY, mixup_alpha=1, cutmix_alpha=-1)

"""Figures 4 and 5: their panels."""

import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from experiments.report import paper_figures

VARIANT = lrnet_jax.Variant(
    depths=(1, 1), width=6, stage_channels=8, stem_channels=4, stem_kernel_size=3, kernel_size=3,
    stem_channels_per_group=2, channels_per_group=2, prior_hidden=4, implementation="reference",
)  # fmt: skip


def test_vectors_are_drawn_as_their_lengths():
    assert paper_figures.scalars(np.array([[[3.0, 4.0]]])) == [[5]]
    assert paper_figures.scalars(np.array([[[-3.0]]])) == [[-3]]


def test_figures_have_a_panel_for_each_map(tmp_path):
    pytest.importorskip("matplotlib")
    model = lrnet_jax.create_from_variant(VARIANT, 3, nnx.Rngs(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)

    priors = paper_figures.draw_priors(model)
    shown = [axis.images[0].get_array() for axis in priors.axes if len(axis.images) == 1]
    assert len(shown) == 2 + 3 + 6  # groups of the stem and of two stages, none twice
    np.testing.assert_allclose([weights.sum() for weights in shown], 1, rtol=1e-5)

    maps = paper_figures.draw_maps(model, images, (120.0,) * 3, (60.0,) * 3)
    panels = [axis for axis in maps.axes if len(axis.images) == 1]
    assert len(panels) == 2 * (1 + 2 * 3)
    titles = [axis.get_title() for axis in maps.axes[:7]]
    assert titles == [
        "image", "res1\nkey", "res1\nquery", "res2\nkey", "res2\nquery", "res3\nkey", "res3\nquery",
    ]  # fmt: skip
    key, query = (panel.images[0].get_clim() for panel in panels[1:3])
    assert key == query
    for name, figure in (("a.png", priors), ("b.png", maps)):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000


def test_a_network_without_priors_has_no_figure_4():
    pytest.importorskip("matplotlib")
    variant = lrnet_jax.Variant(depths=(1,), width=4, stage_channels=4, prior="none")
    model = nnx.eval_shape(lambda: lrnet_jax.create_from_variant(variant, 3, nnx.Rngs(0)))
    assert paper_figures.draw_priors(model) is None

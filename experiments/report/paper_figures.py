"""Figures 4 and 5 of the paper, drawn from a network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report.drawing import WIDTH, new_figure
from lrnet_jax import Network, visualize
from lrnet_jax.data.augment import normalize

Channels = tuple[float, float, float]
GROUPS = 8  # of each stage in figure 4
_BAR = 0.08  # size of a colour bar, relative to a panel


def draw_priors(model: Network) -> Any:
    """Figure 4: priors after softmax, a row for each stage.

    A row shows groups of the last local relation of its stage, from the sharpest to the flattest.

    Returns:
      The figure; None for a network without priors.
    """
    layers = visualize.local_relations(model)
    weights = {
        stage: visualize.prior_weights(layers[name])
        for stage, name in visualize.stage_layers(model).items()
    }
    if any(table is None for table in weights.values()):
        return None
    figure = _new_figure(0.76 * len(weights) + 0.05)
    ratios = [*[1.0] * GROUPS, _BAR]
    axes = figure.subplots(len(weights), GROUPS + 1, width_ratios=ratios, squeeze=False)
    for row, (stage, table) in zip(axes, weights.items(), strict=True):
        assert table is not None
        row[0].set_ylabel(f"{stage}\n{len(table)} groups", fontsize=7)
        _draw_stage_priors(figure, row, table)
    return figure


def _draw_stage_priors(figure: Any, row: Any, table: np.ndarray) -> None:
    """One row of figure 4: (G, k, k) weights on `GROUPS` panels and a colour bar."""
    from matplotlib.colors import PowerNorm

    groups, size, _ = table.shape
    sharpest_first = np.argsort(-table.max((1, 2)), kind="stable")
    shown = sharpest_first[np.unique(np.linspace(0, groups - 1, GROUPS).round().astype(int))]
    uniform = 1 / size**2
    top = max(float(table.max()), 4 * uniform)  # so a flat window stays pale
    for axis, group in zip(row, shown, strict=False):
        image = axis.imshow(table[group], norm=PowerNorm(0.5, 0, top), cmap="Blues")
        axis.plot(size // 2, size // 2, ".", color="#c03028", markersize=2)
        axis.set_title(f"g = {group}", fontsize=6, pad=2)
        _frame(axis)
    for axis in row[len(shown) : GROUPS]:
        axis.axis("off")
    bar = figure.colorbar(image, cax=row[-1])
    bar.outline.set_linewidth(0.4)
    bar.set_ticks([0, uniform, top], labels=["0", f"1/{size**2}", f"{top:.2f}"])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=6, length=2, width=0.4)


def draw_maps(model: Network, images: np.ndarray, mean: Channels, std: Channels) -> Any:
    """Figure 5: each image with keys and queries of the last local relation of each stage.

    Args:
      model: the network.
      images: (B, H, W, 3) uint8.
      mean: of the channels, in levels of 0 to 255.
      std: likewise.
    """
    maps = visualize.query_key_maps(
        model, jax.device_put(normalize(jnp.asarray(images), mean, std))
    )
    stages = visualize.stage_layers(model)
    columns = 1 + 2 * len(stages)
    figure = _new_figure(WIDTH / columns * len(images) + 0.65)
    ratios = [*[1.0] * len(images), _BAR]
    axes = figure.subplots(len(images) + 1, columns, height_ratios=ratios, squeeze=False)
    for axis, image in zip(axes[:-1, 0], images, strict=True):
        axis.imshow(image)
        _frame(axis)
    axes[0, 0].set_title("image", fontsize=7, pad=3)
    axes[-1, 0].axis("off")
    for index, (stage, name) in enumerate(stages.items()):
        pair = axes[:, 1 + 2 * index : 3 + 2 * index]
        _draw_stage_maps(figure, pair, stage, scalars(maps[name].key), scalars(maps[name].query))
    return figure


def _draw_stage_maps(
    figure: Any, axes: Any, stage: str, key: np.ndarray, query: np.ndarray
) -> None:
    """Two columns of figure 5: (B, H, W, G) scalars of the group whose keys vary most."""
    group = int(np.argmax(key.std((0, 1, 2))))
    columns = (key[..., group], query[..., group])
    # Key and query share a scale, because the similarity compares their values.
    low, high = np.percentile(np.concatenate([maps.ravel() for maps in columns]), [1, 99])
    for column, (title, maps) in enumerate(zip(("key", "query"), columns, strict=True)):
        for axis, map_ in zip(axes[:-1, column], maps, strict=True):
            shown = axis.imshow(map_, vmin=low, vmax=high, cmap="viridis")
            _frame(axis)
        axes[0, column].set_title(f"{stage}\n{title}", fontsize=7, pad=3)
    bar = figure.colorbar(
        shown, cax=_merge(figure, axes[-1]), orientation="horizontal", extend="both"
    )
    bar.outline.set_linewidth(0.4)
    bar.ax.locator_params(nbins=4)
    bar.ax.tick_params(labelsize=6, length=2, width=0.4)
    bar.set_label(f"g = {group}", fontsize=6, labelpad=1)


def scalars(vectors: np.ndarray) -> np.ndarray:
    """(..., D) -> (...): scalars as they are, vectors as their lengths."""
    return vectors[..., 0] if vectors.shape[-1] == 1 else np.linalg.norm(vectors, axis=-1)


def _merge(figure: Any, pair: Any) -> Any:
    """One panel in place of two neighbours."""
    left, right = (axis.get_subplotspec() for axis in pair)
    for axis in pair:
        axis.remove()
    grid = left.get_gridspec()
    return figure.add_subplot(grid[left.rowspan.start, left.colspan.start : right.colspan.stop])


def _new_figure(height: float) -> Any:
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return new_figure(height, layout)


def _frame(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_linewidth(0.4)

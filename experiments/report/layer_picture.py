"""A picture of one output pixel of a local relation: its window, its weights and the result."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.report.drawing import require_matplotlib

PHOTOGRAPH = pathlib.Path(__file__).parents[1] / "bench/photographs/coffee.jpg"
KERNEL_SIZE = 7


class Inputs(NamedTuple):
    """A photograph, and queries, keys and a prior that were chosen by hand.

    Attributes:
      x: (H, W, 3) float32 in [0, 1].
      query: (H, W), the brightness.
      key: the same.
      prior: (k, k), larger for near pixels.
      pixel: (row, column) of the output pixel, which lies on an edge.
    """

    x: np.ndarray
    query: np.ndarray
    key: np.ndarray
    prior: np.ndarray
    pixel: tuple[int, int]


class Parts(NamedTuple):
    """What `aggregate_pixel` computes on the way, (k, k) each, and its result, (C,)."""

    keys: np.ndarray
    similarity: np.ndarray
    weights: np.ndarray
    result: np.ndarray


def example() -> Inputs:
    """The inputs of the picture."""
    image = Image.open(PHOTOGRAPH).convert("RGB").resize((64, 48))
    x = np.asarray(image, np.float32) / 255
    brightness = 8 * x.mean(-1)
    offsets = np.arange(KERNEL_SIZE) - KERNEL_SIZE // 2
    prior = -0.08 * (offsets[:, None] ** 2 + offsets[None, :] ** 2)
    return Inputs(x, brightness, brightness, prior, pixel=(23, 32))  # on the rim of the cup


def aggregate_pixel(inputs: Inputs) -> Parts:
    """One output pixel, whose window is inside the image. G = 1 and D = 1."""
    x, query, key, prior, (row, column) = inputs
    offsets = np.arange(len(prior)) - len(prior) // 2
    window = np.ix_(row + offsets, column + offsets)
    similarity = -((query[row, column] - key[window]) ** 2)  # Eqn. 3 of the paper
    logits = similarity + prior
    weights = np.exp(logits) / np.exp(logits).sum()
    result = (weights[..., None] * x[window]).sum((0, 1))
    return Parts(key[window], similarity, weights, result)


def draw_layer(inputs: Inputs, parts: Parts) -> Any:
    """The figure, of six panels.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    size, (row, column) = len(inputs.prior), inputs.pixel
    query = inputs.query[inputs.pixel]
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=[4 / 3, 1, 1]).flat
    draw_panel(axes[0], inputs.x, "input, and the window of a pixel")
    corner = (column - size / 2, row - size / 2)
    axes[0].add_patch(Rectangle(corner, size, size, fill=False, edgecolor="red", linewidth=1.5))
    axes[0].plot(column, row, "r.", markersize=4)
    _draw_numbers(axes[1], parts.keys, f"keys; the query is {query:.1f}", "viridis")
    _draw_numbers(axes[2], parts.similarity, "similarity -(query - key)²")
    _draw_numbers(axes[3], inputs.prior, "+ geometric prior")
    _draw_numbers(axes[4], 100 * parts.weights, "softmax: weights in %")
    draw_panel(axes[5], np.full((size, size, 3), parts.result), "output: the weighted mean")
    return figure


def draw_panel(axis: Any, values: np.ndarray, title: str, **options: Any) -> Any:
    """Shows an image without ticks; returns matplotlib's image."""
    shown = axis.imshow(values, **options)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    return shown


def _draw_numbers(axis: Any, values: np.ndarray, title: str, colors: str = "Blues") -> None:
    """A (k, k) array with its numbers, light on dark cells and dark on light ones."""
    shown = draw_panel(axis, values, title, cmap=colors)
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = shown.to_rgba(value)
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        axis.text(
            column, row, f"{value:z.1f}", ha="center", va="center", fontsize=7,
            color="white" if dark else "black",
        )  # fmt: skip

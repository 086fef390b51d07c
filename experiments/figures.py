"""Draws figures 4 and 5 of the paper from a checkpoint.

    pip install -e .[figures]
    python -m experiments.figures --checkpoint=runs/lrnet26 --out=figures
    python -m experiments.figures --checkpoint=runs/lrnet26 --images=cat.jpg,dog.jpg

DIR/figure4.png has a row for each stage: the geometric priors of its last local relation layer,
after softmax, for groups from the sharpest to the flattest of the layer. The dot is the output
pixel; colours are spaced by the square root, so that flat windows show beside sharp ones.
DIR/figure5.png has a row for each image: keys and queries of the same layers, of the group whose
keys vary most over these images. Key and query share a scale, because the similarity compares
their values. Vectors are drawn as their lengths. Layers of the whole image are left out.

Images come from the evaluation split of the checkpoint's data unless --images names files.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import lrnet_jax
from experiments import config as configs
from experiments.cli.overrides import override
from experiments.config import ConfigError
from experiments.run.inputs import open_data
from lrnet_jax import Network, visualize
from lrnet_jax.data import DamagedDatasetError, MissingDatasetError
from lrnet_jax.data.augment import normalize
from lrnet_jax.data.dataset import Batch
from lrnet_jax.data.decode import central_crop, decode
from lrnet_jax.training.checkpoints import CheckpointError

WIDTH = 5.5  # inches, a column of text
DPI = 300
GROUPS = 8  # of each stage in figure 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws what a checkpoint holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a workdir, or one step of it")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("figures"))
    parser.add_argument("--images", default="", help="files to draw figure 5 on, with commas")
    parser.add_argument("--count", type=int, default=4, help="images without --images")
    parser.add_argument("--data_dir", help="where prepared data sets lie here")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax tells of its own affairs at the level of warnings
    try:
        drawn = draw(options.checkpoint, options.images, options.count, options.data_dir)
    except (
        CheckpointError, ConfigError, DamagedDatasetError, MissingDatasetError,
    ) as error:  # fmt: skip
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        if figure is None:
            print(f"{name}: not drawn, the network has no geometric priors")
        else:
            figure.savefig(options.out / name, dpi=DPI)
            print(options.out / name)


def draw(checkpoint: str, files: str, count: int, data_dir: str | None) -> dict[str, Any]:
    """The figures of a checkpoint by the names of their files; None for one that it cannot have.

    Raises:
      ConfigError: no matplotlib, no local relation layers, or an image cannot be read.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error}; pip install -e '.[figures]'") from error
    model, metadata = lrnet_jax.load_checkpoint(checkpoint)
    if not visualize.local_relations(model):
        raise ConfigError(
            f"{checkpoint} holds {metadata['network']}, which has no local relation layers"
        )
    images = read_images(metadata, [name for name in files.split(",") if name], count, data_dir)
    return {"figure4.png": draw_priors(model), "figure5.png": draw_maps(model, images, metadata)}


def read_images(
    metadata: dict[str, Any], files: Sequence[str], count: int, data_dir: str | None
) -> np.ndarray:
    """The images of figure 5, (N, size, size, 3) uint8: files, else some of the evaluation split.

    Raises:
      ConfigError: a file cannot be read.
    """
    if not files:
        config = configs.from_dict(metadata["config"])
        if data_dir is not None:
            config = override(config, "data.data_dir", data_dir)
        return of_many_classes(next(iter(open_data(config).eval_batches(256))), count)
    images = []
    for name in files:
        try:
            image = decode(pathlib.Path(name).read_bytes())
        except OSError as error:
            raise ConfigError(f"--images: {name} cannot be read: {error}") from error
        images.append(central_crop(image, metadata["image_size"]))
    return np.stack(images)


def of_many_classes(batch: Batch, count: int) -> np.ndarray:
    """The first images of a batch, of classes as different as it has."""
    images, labels = batch["image"][batch["mask"]], batch["label"][batch["mask"]]
    # How many of its class come before each image: 0 for the first of each class.
    before = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    return images[np.argsort(before, kind="stable")[:count]]


def draw_priors(model: Network) -> Any:
    """Figure 4: priors after softmax, a row for each stage; None for a network without priors."""
    from matplotlib.colors import PowerNorm

    layers = visualize.local_relations(model)
    weights = {
        stage: visualize.prior_weights(layers[name])
        for stage, name in visualize.stage_layers(model).items()
    }
    if any(table is None for table in weights.values()):
        return None
    figure = _figure(0.76 * len(weights) + 0.05)
    ratios = [*[1.0] * GROUPS, 0.08]
    axes = figure.subplots(len(weights), GROUPS + 1, width_ratios=ratios, squeeze=False)
    for row, (stage, table) in zip(axes, weights.items(), strict=True):
        assert table is not None
        groups, size, _ = table.shape
        sharpest_first = np.argsort(-table.max((1, 2)), kind="stable")
        shown = np.unique(np.linspace(0, groups - 1, GROUPS).round().astype(int))
        uniform = 1 / size**2
        top = max(float(table.max()), 4 * uniform)  # a flat window is pale, as it should
        for axis in row[len(shown) : GROUPS]:
            axis.axis("off")
        for axis, group in zip(row, sharpest_first[shown], strict=False):
            image = axis.imshow(table[group], norm=PowerNorm(0.5, 0, top), cmap="Blues")
            axis.plot(size // 2, size // 2, ".", color="#c03028", markersize=2)
            axis.set_title(f"g = {group}", fontsize=6, pad=2)
            _frame(axis)
        row[0].set_ylabel(f"{stage}\n{groups} groups", fontsize=7)
        bar = figure.colorbar(image, cax=row[-1])
        bar.outline.set_linewidth(0.4)
        bar.set_ticks([0, uniform, top], labels=["0", f"1/{size**2}", f"{top:.2f}"])
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=6, length=2, width=0.4)
    return figure


def draw_maps(model: Network, images: np.ndarray, metadata: dict[str, Any]) -> Any:
    """Figure 5: each image with keys and queries of each stage."""
    finish = normalize(jnp.asarray(images), metadata["mean"], metadata["std"])
    maps = visualize.query_key_maps(model, jax.device_put(finish))
    stages = visualize.stage_layers(model)
    columns = 1 + 2 * len(stages)
    cell = WIDTH / columns
    figure = _figure(cell * len(images) + 0.65)
    heights = [*[1.0] * len(images), 0.08]
    axes = figure.subplots(len(images) + 1, columns, height_ratios=heights, squeeze=False)
    for axis, image in zip(axes[:-1, 0], images, strict=True):
        axis.imshow(image)
        _frame(axis)
    axes[0, 0].set_title("image", fontsize=7, pad=3)
    axes[-1, 0].axis("off")
    for index, (stage, name) in enumerate(stages.items()):
        left, right = 1 + 2 * index, 2 + 2 * index
        key, query = (_scalars(array) for array in (maps[name].key, maps[name].query))
        group = int(np.argmax(key.std((0, 1, 2))))
        both = np.concatenate([key[..., group].ravel(), query[..., group].ravel()])
        low, high = np.percentile(both, [1, 99])
        for row in range(len(images)):
            for axis, map_ in ((axes[row, left], key), (axes[row, right], query)):
                shown = axis.imshow(map_[row, ..., group], vmin=low, vmax=high, cmap="viridis")
                _frame(axis)
        axes[0, left].set_title(f"{stage}\nkey", fontsize=7, pad=3)
        axes[0, right].set_title(f"{stage}\nquery", fontsize=7, pad=3)
        grid = axes[-1, left].get_gridspec()
        for axis in (axes[-1, left], axes[-1, right]):
            axis.remove()
        bar = figure.colorbar(
            shown, cax=figure.add_subplot(grid[len(images), left : right + 1]),
            orientation="horizontal", extend="both",
        )  # fmt: skip
        bar.outline.set_linewidth(0.4)
        bar.ax.locator_params(nbins=4)
        bar.ax.tick_params(labelsize=6, length=2, width=0.4)
        bar.set_label(f"g = {group}", fontsize=6, labelpad=1)
    return figure


def _scalars(vectors: np.ndarray) -> np.ndarray:
    """(..., D) -> (...): scalars as they are, vectors as their lengths."""
    return vectors[..., 0] if vectors.shape[-1] == 1 else np.linalg.norm(vectors, axis=-1)


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return Figure(figsize=(WIDTH, height), layout=layout)


def _frame(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_linewidth(0.4)


if __name__ == "__main__":
    main()

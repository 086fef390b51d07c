"""Draws figures 4 and 5 of the paper from a trained network.

    python -m pip install -e '.[figures]'
    python -m experiments.figures --run=runs/lrnet26 --out=figures
    python -m experiments.figures --run=runs/lrnet26 --images=cat.jpg,dog.jpg
    python -m experiments.figures --layer=docs/layer.png

DIR/figure4.png has a row for each stage. It shows the geometric priors of the last local relation
of the stage after the softmax, for groups from the sharpest to the flattest. The dot is the output
pixel. Colours are spaced by the square root, so that flat windows are visible beside sharp ones.
DIR/figure5.png has a row for each image. It shows keys and queries of the same layers, of the group
whose keys vary most over these images. Key and query share a scale, because the similarity compares
their values. Vectors are drawn as their lengths. Layers of the whole image are left out.

The images are some of the evaluation split of the run, unless --images names files.

--layer draws what a local relation computes for one pixel of a photograph, which needs no run.
"""

import pathlib
from typing import Any

from absl import flags

import lrnet_jax
from experiments import config as configs
from experiments.cli import command_line, run_flags
from experiments.config import ConfigError
from experiments.report import layer_picture
from experiments.report.drawing import require_matplotlib
from experiments.report.figure_images import evaluation_images
from experiments.report.paper_figures import draw_maps, draw_priors
from lrnet_jax import Preprocessing, visualize

DPI = 300
LAYER_DPI = 200  # twice the width of a page of text on a screen


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    run_flags.define_flags(flag_values, alias="checkpoint")
    flags.DEFINE_string("out", "figures", "Folder of the figures.", flag_values=flag_values)
    flags.DEFINE_string(
        "layer", None, "File of the picture of one output pixel.", flag_values=flag_values
    )
    flags.DEFINE_list("images", [], "Files to draw figure 5 on.", flag_values=flag_values)
    flags.DEFINE_integer(
        "count", 4, "Number of images without --images.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder of the prepared data sets, if not that of the run.",
        flag_values=flag_values,
    )  # fmt: skip


def main(options: flags.FlagValues) -> None:
    """Draws the layer, or the figures of a run."""
    if options.layer:
        inputs = layer_picture.example()
        figure = layer_picture.draw_layer(inputs, layer_picture.aggregate_pixel(inputs))
        figure.savefig(options.layer, dpi=LAYER_DPI)
        print(options.layer)
        return
    figures = draw(run_flags.chosen_run(options), options.images, options.count, options.data_dir)
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if figure is None:
            print(f"{name}: not drawn, the network has no geometric priors")
        else:
            figure.savefig(folder / name, dpi=DPI)
            print(folder / name)


def draw(run: str, files: list[str], count: int, data_dir: str | None) -> dict[str, Any]:
    """The figures of a run by the names of their files; None for one that it cannot have.

    Raises:
      ConfigError: matplotlib is not installed, or the network has no local relations.
      BadImageError: a file cannot be read.
    """
    require_matplotlib()
    model, metadata = lrnet_jax.load_checkpoint(run)
    if not visualize.local_relations(model):
        raise ConfigError(f"{run} holds {metadata['network']}, which has no local relation layers")
    if files:
        images = Preprocessing.from_metadata(metadata).pixels(files)
    else:
        images = evaluation_images(configs.from_dict(metadata["config"]), count, data_dir)
    maps = draw_maps(model, images, metadata["mean"], metadata["std"])
    return {"figure4.png": draw_priors(model), "figure5.png": maps}


if __name__ == "__main__":
    command_line.run(main, define_flags)

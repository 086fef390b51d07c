"""Turns weights of torchvision, timm or an export into a checkpoint.

    python -m experiments.import_weights --network=resnet50 --from=FILE --out=DIR

FILE is a .safetensors, a .npz, or a .pth of torch, which needs torch and is read by its loader of
weights alone. No file can run code. It holds a ResNet of torchvision or timm (resnet18, resnet26,
resnet50, resnet101), or what `experiments.export --format=safetensors` wrote. Every array is used
once, and an array too many is an error.

DIR is then a checkpoint for inference, as an export is: `experiments.evaluate --run=DIR`,
`lrnet_jax.load_checkpoint(DIR)`. How its images are prepared comes from the flags, else from the
header of an export, else from the config.json of timm beside FILE, else it is ImageNet's: 224
pixels out of 256, and the usual means. Resizing is always bicubic.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

import lrnet_jax
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.run import imported, pasteable
from experiments.run.imported import Given
from experiments.run.new_folder import check_new
from lrnet_jax.data import imagenet_names
from lrnet_jax.data.decode import shorter_side
from lrnet_jax.foreign.convert import to_tree
from lrnet_jax.foreign.files import read_arrays
from lrnet_jax.training.checkpoints import CheckpointError

IMAGENET, NONE = "imagenet2012", "none"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "network", None, "The network of the zoo whose weights they are; an export names its own.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_string("from", None, "The file of weights.", flag_values=flag_values)
    flags.DEFINE_string("out", None, "A new folder.", flag_values=flag_values)
    flags.DEFINE_string(
        "class_names", None,
        f"{IMAGENET}, {NONE}, or a file with a name in each line (default: those beside the "
        f"weights; else {IMAGENET} for 1000 classes, and {NONE} for others).",
        flag_values=flag_values,
    )  # fmt: skip
    for name, text in (
        ("image_size", "Side of the images, in pixels."),
        ("resize", "Shorter side of an image before it is cropped to the centre."),
    ):
        flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=flag_values)
    for name, text in (("mean", "Means"), ("std", "Standard deviations")):
        flags.DEFINE_list(
            name, None, f"{text} of R, G and B in 0 to 1, as timm gives them.",
            flag_values=flag_values,
        )  # fmt: skip


def main(options: flags.FlagValues) -> None:
    """Imports a file."""
    path = pathlib.Path(command_line.require(options, "from", "resnet50.safetensors"))
    out = check_new(command_line.require(options, "out", "exports/resnet50"), "out")
    changes = chosen_preprocessing(options)
    arrays, texts = read_arrays(path)
    header = imported.read_header(path, texts)
    network, variant = chosen_network(options.network, header)
    tree, num_classes = to_tree(arrays, variant)
    given = change(imported.read_given(path, header), changes)
    names, source = chosen_names(options.class_names, num_classes, given)
    given = given._replace(class_names=names)
    record = imported.record_of(network, variant, num_classes, given, header, path.name)
    imported.write(out, tree, record)
    print(*imported.describe(network, arrays, tree, given), sep="\n")
    print(f"{num_classes} classes, names: {source}")
    print(f"wrote {out}; next: {pasteable.command('experiments.evaluate', [f'--run={out}'])}")


def chosen_network(name: str | None, header: dict[str, Any]) -> tuple[str, lrnet_jax.Variant]:
    """The network that --network or the header of an export names.

    Raises:
      ConfigError: there is none, or they contradict each other.
    """
    if header:
        if name not in (None, header["network"]):
            raise ConfigError(
                f"--network={name}: the weights are an export of {header['network']}; "
                "leave --network out"
            )
        try:
            return header["network"], lrnet_jax.Variant(**header["variant"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the header describes a network that this version cannot build: {error}"
            ) from error
    if not name:
        raise ConfigError("--network is missing; for example --network=resnet50")
    try:
        return name, lrnet_jax.get_variant(name)
    except ValueError as error:
        raise ConfigError(f"--network={name}: {error}") from error


def chosen_preprocessing(options: flags.FlagValues) -> dict[str, Any]:
    """The fields of `Preprocessing` that the flags change.

    Raises:
      ConfigError: a mean or deviation is no number of 0 to 1, or there are not three.
    """
    changes: dict[str, Any] = {
        name: options[name].value
        for name in ("image_size", "resize")
        if options[name].value is not None
    }
    for name in ("mean", "std"):
        typed = options[name].value
        if typed is None:
            continue
        try:
            numbers = [float(text) for text in typed]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
            raise ConfigError(
                f"--{name} must be three numbers of 0 to 1, got {','.join(typed)}; for example "
                f"--{name}=0.5,0.5,0.5"
            )
        changes[name] = tuple(255 * number for number in numbers)
    return changes


def change(given: Given, changes: dict[str, Any]) -> Given:
    """What is known of the weights, after the flags.

    Raises:
      ConfigError: the shorter side is less than the side of the crop.
    """
    if not changes:
        return given
    if "image_size" in changes and "resize" not in changes:
        changes = {**changes, "resize": shorter_side(changes["image_size"])}
    preprocessing = dataclasses.replace(given.preprocessing, **changes)
    if preprocessing.resize < preprocessing.image_size:
        raise ConfigError(
            f"--resize={preprocessing.resize} is less than the image size of "
            f"{preprocessing.image_size}; an image is cropped after it is resized"
        )
    return given._replace(preprocessing=preprocessing, source=f"the flags and {given.source}")


def chosen_names(
    choice: str | None, num_classes: int, given: Given
) -> tuple[tuple[str, ...] | None, str]:
    """The class names, and where they are from.

    Raises:
      ConfigError: there are not as many as classes, or the file cannot be read.
    """
    if choice is None and given.class_names is not None:
        names, source = given.class_names, f"from {given.source}"
    elif choice == NONE or (choice is None and num_classes != len(imagenet_names.synsets())):
        return None, "none; --class_names=FILE gives them"
    elif choice in (None, IMAGENET):
        names, source = imagenet_names.synsets(), "the synsets of ImageNet"
        if choice is None:
            source += f", taken because there are {num_classes}; --class_names={NONE} for none"
    else:
        path = pathlib.Path(choice)
        try:
            names, source = tuple(path.read_text().splitlines()), f"from {path}"
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--class_names={choice} cannot be read: {error}") from error
    if len(names) != num_classes:
        raise ConfigError(
            f"{len(names)} class names ({source}), but the weights have {num_classes} classes; "
            f"give --class_names=FILE or --class_names={NONE}"
        )
    return names, source


if __name__ == "__main__":
    command_line.run(main, define_flags)

"""Prepares ImageNet (ILSVRC 2012) for training from its two tar files.

    python -m pip install -e '.[prepare]'
    python -m experiments.prepare_imagenet --manual_dir=DIR --data_dir=DIR

`--manual_dir` holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, as image-net.org provides
them. The builder of TensorFlow Datasets does the work, so the result is an ordinary `imagenet2012`
that any TFDS program reads. Only this command needs TensorFlow.

The command checks what the builder does not. Before the build it checks that both tars are whole,
the name and number of the images, and the free disk space. The builder pairs validation labels with
the sorted names, so a missing image would shift all later labels without an error. After the build
the command checks the counts, and compares the labels of a sample of images with their file names.
"""

import pathlib
import signal
import sys

from absl import flags

from experiments.cli import command_line
from experiments.prepare.imagenet_builder import FORMATS, prepare
from experiments.prepare.imagenet_tars import TRAIN_TAR, VALIDATION_TAR
from lrnet_jax.data import prepared


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "manual_dir", None, f"Folder of {TRAIN_TAR} and {VALIDATION_TAR}.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "data_dir", str(prepared.default_data_dir()), "Folder for the prepared data set.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "file_format", FORMATS[0], FORMATS, "Format of the files.", flag_values=flag_values
    )


def main(options: flags.FlagValues) -> None:
    """Prepares the data set, or verifies the one that exists."""
    manual_dir = pathlib.Path(command_line.require(options, "manual_dir", "DIR"))
    data_dir = pathlib.Path(options.data_dir)
    exit_on_sigterm()
    target = prepare(manual_dir.expanduser(), data_dir.expanduser(), options.file_format)
    print(f"ImageNet is ready: {target}")


def exit_on_sigterm() -> None:
    """Raises SystemExit on SIGTERM, so that the builder removes its unfinished folder."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM, unfinished files removed"))


if __name__ == "__main__":
    command_line.run(main, define_flags)

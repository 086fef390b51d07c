"""Says what is on images.

    python -m experiments.predict --run=runs/quickstart shoe.png photographs/
    python -m experiments.predict --run=runs/lrnet50 --html=predictions.html --maps photographs/
    python -m experiments.predict --run=runs/lrnet50 --csv photographs/ > predictions.csv

Arguments are files, or folders whose images are taken with those of the folders below. The network,
its preprocessing and the names of its classes come from the checkpoint. JPEG, PNG, WebP, BMP, GIF,
TIFF, PPM and PGM are read, in any size and mode.

There is a line for each image with the most probable classes. --csv prints a line for each image
and class, and --json an object for each image, one a line. --html also writes a page, one file,
with each picture and its bars.

Files that cannot be read are named and skipped, and the exit code is then 3.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags
from tqdm import tqdm

import lrnet_jax
from experiments.cli import command_line, device_flags, run_flags
from experiments.config import ConfigError
from experiments.report import prediction_text
from experiments.report.prediction_page import open_predictions
from experiments.run.image_files import list_files
from experiments.run.predictions import Prediction, predict_files
from lrnet_jax.classifier import BATCH_SIZE, Classifier
from lrnet_jax.data import BadImageError

SKIPPED = 3  # exit code


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_string(
        command_line.ARGUMENTS, [], "Image files, and folders of images.", flag_values=flag_values
    )
    run_flags.define_flags(flag_values)
    device_flags.define_flags(flag_values)
    flags.DEFINE_integer(
        "top", 5, "Classes shown for each image.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_boolean("csv", False, "Print CSV.", flag_values=flag_values)
    flags.DEFINE_boolean("json", False, "Print JSON, a line an image.", flag_values=flag_values)
    flags.DEFINE_string("html", None, "Also write this page.", flag_values=flag_values)
    flags.DEFINE_boolean(
        "maps", False,
        "Add geometric priors and query and key maps to the page; needs matplotlib, "
        "python -m pip install -e '.[figures]'.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch_size", BATCH_SIZE, "Images per step.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_boolean(
        "ema", None,
        "Use the averaged weights, or with --noema the last ones (default: the averaged ones if "
        "the run kept them).",
        flag_values=flag_values,
    )  # fmt: skip


def main(options: flags.FlagValues) -> int:
    """Entry point."""
    run = run_flags.chosen_run(options)
    if options.csv and options.json:
        raise ConfigError("--csv and --json exclude each other; leave one out")
    if options.maps and not options.html:
        raise ConfigError("--maps is for a page; add --html=FILE")
    files = list_files(options[command_line.ARGUMENTS].value or ())
    device_flags.apply(options, beside_training=True)
    classifier = lrnet_jax.load_classifier(run, ema=options.ema)
    for message in classifier.metadata["damaged"]:
        print(f"{message}; step {classifier.metadata['step']} is used", file=sys.stderr)
    return predict(classifier, files, options, run)


def predict(
    classifier: Classifier, files: list[pathlib.Path], options: flags.FlagValues, run: str
) -> int:
    """Prints the predictions for files, and writes the page.

    Returns:
      The exit code.

    Raises:
      BadImageError: the only file cannot be read.
      ConfigError: no file can be read, or the page cannot be written.
    """
    header, line = _format(options, files, classifier.class_names or ())
    bad = []
    with contextlib.ExitStack() as stack:
        add_to_page = _page(stack, options, classifier, run)
        bar = stack.enter_context(tqdm(total=len(files), unit="image", disable=None))
        if header:
            bar.write(header, file=sys.stdout)
        for prediction in predict_files(
            classifier, files, top=options.top, batch_size=options.batch_size
        ):
            bar.update()
            if isinstance(prediction.pixels, BadImageError):
                bad.append(prediction.pixels)
                if len(files) > 1:
                    bar.write(f"skipped: {prediction.pixels}", file=sys.stderr)
            if text := line(prediction):
                bar.write(text, file=sys.stdout)
            add_to_page(prediction)
        if len(bad) == len(files):
            raise bad[0] if len(files) == 1 else ConfigError(f"none of {len(files)} files was read")
    return SKIPPED if bad else 0


def _format(
    options: flags.FlagValues, files: list[pathlib.Path], classes: Sequence[str]
) -> tuple[str, prediction_text.Format]:
    if options.csv:
        return prediction_text.as_csv()
    return prediction_text.as_json() if options.json else prediction_text.table(files, classes)


def _page(
    stack: contextlib.ExitStack, options: flags.FlagValues, classifier: Classifier, run: str
) -> Callable[[Prediction], None]:
    """What adds a prediction to the page, until `stack` is left; nothing without --html."""
    if not options.html:
        return lambda prediction: None
    page = open_predictions(pathlib.Path(options.html), classifier, run, maps=options.maps)
    return stack.enter_context(page).add


if __name__ == "__main__":
    command_line.run(main, define_flags)

"""The model card of an export: a README with what one needs to know before using a network."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import config as configs
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.report.table import Table
from experiments.run.imported import RECIPE as IMPORTED
from experiments.run.overrides import typed
from experiments.run.results import known_scores
from lrnet_jax.complexity import network_cost
from lrnet_jax.data.imagenet_names import readable
from lrnet_jax.data.in_memory import EMBEDDED
from lrnet_jax.preprocessing import Preprocessing, class_names
from lrnet_jax.variant import Variant

FILE = "README.md"
NOT_STATED = "not stated"
# Name of a data set: its name on hubs of models, and the terms of its images.
DATA = {
    **dict.fromkeys(EMBEDDED, ("fashion_mnist", "MIT (Zalando SE)")),
    "imagenet2012": ("imagenet-1k", "ImageNet's terms of access, for non-commercial research"),
}
LISTED = 20  # class names on the card
# What of a checkpoint's metadata is of the network, and not of the folder it was in.
KEPT = ("network", "variant", "num_classes", "step", "config", "ema", "imported_from")


def describe_network(path: str | pathlib.Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the header and the model card say of a network, as JSON types."""
    scores = known_scores(path, metadata)
    record = {
        **{key: metadata[key] for key in KEPT if key in metadata},
        "class_names": class_names(metadata),  # those of the data set if it has none
        **dataclasses.asdict(Preprocessing.from_metadata(metadata)),
        "scores": None if scores is None else dataclasses.asdict(scores),
    }
    return json.loads(json.dumps(record))


def write(record: Mapping[str, Any], *, title: str, usage: str, license_: str | None) -> str:
    """The card as Markdown, with the fields that hubs of models read at its top.

    Args:
      record: the metadata of a checkpoint, with "resize" and "scores" (`Scores` as a dict or None).
      title: of the card.
      usage: how the files beside it are used, as Markdown.
      license_: of the weights, None if it is not stated.
    """
    parts = [
        _front_matter(record, license_),
        f"# {title}",
        _facts(record).markdown(),
        f"## Results\n\n{_results(record)}",
        f"## Training\n\n{_training(record)}",
        f"## Images and classes\n\n{_images(record)}",
        f"## Use\n\n{usage}",
        f"## Licences\n\n{_licences(record, license_).markdown()}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: Mapping[str, Any], license_: str | None) -> str:
    data = _data_name(record)
    lines = [
        "---",
        f"license: {license_ or 'unknown'}",
        "library_name: lrnet_jax",
        "pipeline_tag: image-classification",
        f"tags: [image-classification, jax, {record['network']}]",
    ]
    if data in DATA:
        lines.append(f"datasets: [{DATA[data][0]}]")
    if record["scores"]:
        lines.append("metrics: [accuracy]")
    return "\n".join([*lines, "---"])


def _facts(record: Mapping[str, Any]) -> Table:
    variant, size = Variant(**record["variant"]), record["image_size"]
    cost = network_cost(variant, record["num_classes"], size)
    rows = [
        ("network", record["network"]),
        ("parameters", f"{cost.parameters / 1e6:.3f} M"),
        ("multiply-adds", f"{cost.macs / 1e9:.3f} G at {size} x {size}"),
        ("classes", str(record["num_classes"])),
        ("step of its training", str(record["step"])),
        ("weights", "averaged over steps" if record.get("ema") else "of the last step"),
    ]
    if "imported_from" in record:
        rows = [*rows[:4], ("imported from", record["imported_from"])]
    return Table(("", ""), tuple(rows))


def _results(record: Mapping[str, Any]) -> str:
    scores = record["scores"]
    if not scores:
        return (
            "No evaluation of these weights is on record: their training was not finished, or was "
            "done elsewhere."
        )
    row = (
        f"{_data_name(record)}, evaluation split",
        str(scores["count"]),
        f"{scores['top1']:.2f} %",
        f"{scores['top5']:.2f} %",
        f"{scores['loss']:.4f}",
    )
    return Table(("data", "images", "top-1", "top-5", "loss"), (row,)).markdown()


def _training(record: Mapping[str, Any]) -> str:
    name = record["config"]["recipe"]
    if name == IMPORTED:
        return f"Elsewhere: the weights are those of {record.get('imported_from', 'a file')}."
    try:
        config = configs.from_dict(record["config"])
    except ConfigError as error:
        return f"By the recipe `{name}` of another version of lrnet_jax ({error})."
    if name not in RECIPES:
        return f"By the recipe `{name}`, which this version of lrnet_jax does not have."
    flags = [f"--config={name}", *_changes(config), "--workdir=RUN"]
    return "    python -m experiments.train " + " \\\n        ".join(flags)


def _changes(config: configs.Config) -> list[str]:
    """The flags that make the configuration from its recipe."""
    before, after = configs.flatten(RECIPES[config.recipe]), configs.flatten(config)
    return [
        f"--config.{path}={typed(value)}"
        for path, value in after.items()
        if path != "data.data_dir" and value != before[path]
    ]


def _images(record: Mapping[str, Any]) -> str:
    mean, std = (", ".join(f"{value:.2f}" for value in record[name]) for name in ("mean", "std"))
    side, names = record["image_size"], record["class_names"]
    text = (
        f"RGB. The shorter side is resized to {record['resize']} pixels (bicubic, antialiased), "
        f"and the central {side} x {side} is cut out. Then (levels of 0 to 255 - mean) / std, "
        f"with mean {mean} and std {std}."
    )
    if names is None:
        return f"{text}\n\nThe classes have no names."
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{text}\n\nClasses: {', '.join(readable(names[:LISTED]))}{more}."


def _licences(record: Mapping[str, Any], license_: str | None) -> Table:
    data = _data_name(record)
    terms = DATA[data][1] if data in DATA else NOT_STATED
    rows = (
        ("code (lrnet_jax)", "Apache-2.0"),
        ("weights", license_ or f"{NOT_STATED}; state one before you publish them"),
        (f"images ({data})", terms),
    )
    return Table(("", "licence"), rows)


def _data_name(record: Mapping[str, Any]) -> str:
    config = record["config"]
    return NOT_STATED if config["recipe"] == IMPORTED else config["data"]["name"]

"""Configurations: frozen dataclasses, each with its checks.

    --config=lrnet50 --config.optim.learning_rate=0.2 --config.model.kernel_size=5

A recipe (`experiments/recipes/`) is a named Config. A field that the command line changes
(`experiments/run/overrides.py`) makes a new Config, which checks itself. The configuration is saved
with the run as config.json, and read back when the run is resumed.
"""

import dataclasses
import json
import pathlib
import typing
from typing import Any

import lrnet_jax
from experiments.config import sections
from experiments.config.sections import Attack, ConfigError, Data, Optim, Train, check_at_least
from experiments.config.types import check_record
from lrnet_jax.training.devices import AXIS
from lrnet_jax.variant import Remat

FILE = "config.json"
CHANNELS = 3  # of the images of every data set


@dataclasses.dataclass(frozen=True)
class Config:
    """All that decides what a run computes.

    Attributes:
      recipe: name of the recipe that it started from.
      network: a network of the zoo (`lrnet_jax.list_models()`).
      model: the variant's fields. Those that the recipe does not change follow `network`.
      seed: seed of the initial weights, the order of images and the augmentation.
      data: see `Data`.
      optim: see `Optim`.
      train: see `Train`.
      attack: see `Attack`.
    """

    recipe: str = dataclasses.field(metadata=sections.SAME_RESULT)
    network: str
    model: lrnet_jax.Variant
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    attack: Attack = dataclasses.field(default_factory=Attack)

    def __post_init__(self) -> None:
        check_at_least(0, "", self, "seed")
        if self.attack.steps and self.data.mixes:
            raise ConfigError(
                f"attack.steps {self.attack.steps} attacks images of one label, and mixed images "
                "have two; use --config.data.mixup_alpha=0 --config.data.cutmix_alpha=0"
            )
        if self.model.in_channels != CHANNELS:
            raise ConfigError(
                f"model.in_channels {self.model.in_channels} does not fit the images of data sets, "
                f"which are RGB; use --config.model.in_channels={CHANNELS}"
            )
        images, batch = self.variant.batch_norm_images, self.train.batch_size
        if images is not None and batch % images:
            raise ConfigError(
                f"train.batch_size {batch} is not divisible by model.batch_norm_images {images}; "
                f"use a multiple, or --config.model.batch_norm_images=none"
            )

    @property
    def variant(self) -> lrnet_jax.Variant:
        """The network that is built: `model`, after train.sync_batch_norm."""
        if not self.train.sync_batch_norm:
            return self.model
        return dataclasses.replace(self.model, batch_norm_axis=AXIS, batch_norm_images=None)


def recipe(name: str, network: str, *, model: dict[str, Any] | None = None, **parts: Any) -> Config:
    """Builds a Config from a network of the zoo and the fields to change.

    Args:
      name: name of the recipe.
      network: a network of the zoo.
      model: fields of `lrnet_jax.Variant` to change.
      **parts: other fields of Config: seed, data, optim, train, attack.
    """
    variant = dataclasses.replace(lrnet_jax.get_variant(network), **(model or {}))
    return Config(recipe=name, network=network, model=variant, **parts)


def remat_on_gpu(variant: lrnet_jax.Variant) -> Remat:
    """What recipes for GPUs let the backward pass of a network compute again.

    It is the fastest choice within 1.25 times the memory of the ResNet of the same depth. Networks
    with non-local blocks or the full image as window were not measured.
    """
    local = variant.operator == "local_relation" and variant.scope == "local"
    return "blocks" if local and not variant.non_local_blocks else "none"


SECTIONS: dict[str, Any] = {  # name to dataclass
    name: kind
    for name, kind in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(kind)
}


def _marked(mark: str) -> frozenset[str]:
    homes = {"": Config, **{f"{name}.": kind for name, kind in SECTIONS.items()}}
    return frozenset(
        prefix + field.name
        for prefix, kind in homes.items()
        for field in dataclasses.fields(kind)
        if field.metadata.get("mark") == mark
    )


# A variant is the library's, which knows nothing of runs: its two fields are named here.
FREE = _marked("free") | {"model.remat"}
SAME_RESULT = FREE | _marked("same result") | {"model.implementation"}


def to_dict(config: Config) -> dict[str, Any]:
    """All fields as JSON types, with the variant that is built."""
    return json.loads(json.dumps(dataclasses.asdict(_resolved(config))))


def from_dict(record: dict[str, Any]) -> Config:
    """The configuration of a saved record.

    Raises:
      ConfigError: the record is not a configuration of this version.
    """
    try:
        check_record(Config, record)
        for name in SECTIONS.keys() & record.keys():
            # A variant checks itself, and takes what older versions wrote.
            check_record(SECTIONS[name], record[name], f"{name}.", values=name != "model")
        fields = {
            name: SECTIONS[name](**{key: _tuples(item) for key, item in value.items()})
            if name in SECTIONS
            else value
            for name, value in record.items()
        }
        return Config(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"not a configuration of this version of lrnet_jax: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load(path: pathlib.Path) -> Config:
    """Reads a config.json.

    Raises:
      ConfigError: the file cannot be read, or is not a configuration of this version.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        return from_dict(record)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; bring back the file that was saved") from error


def differences(old: Config, new: Config, ignored: frozenset[str] = FREE) -> list[str]:
    """The fields in which two configurations differ, as "a.b: old -> new", without `ignored`."""
    flat_old, flat_new = flatten(old), flatten(new)
    return [
        f"{path}: {flat_old[path]} -> {flat_new[path]}"
        for path in flat_new
        if flat_old[path] != flat_new[path] and path not in ignored
    ]


def flatten(config: Config) -> dict[str, Any]:
    """All fields as {"optim.learning_rate": 0.4, ...}, with the variant that is built."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(_resolved(config)).items():
        if name in SECTIONS:
            flat.update({f"{name}.{field}": item for field, item in value.items()})
        else:
            flat[name] = value
    return flat


def _resolved(config: Config) -> Config:
    return dataclasses.replace(config, model=config.variant)

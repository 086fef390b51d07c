"""Configurations: frozen dataclasses, changed from the command line by `--config.a.b=value`.

    --config=lrnet50 --config.optim.learning_rate=0.2 --config.model.kernel_size=5

A recipe (`experiments/recipes/`) is a named Config. Every change builds a new one, which checks
itself; a misspelt field is answered with the nearest. The resolved configuration is saved with the
run as config.json and read back on resume.
"""

import dataclasses
import difflib
import json
import pathlib
import types
import typing
from typing import Any, Literal

import lrnet_jax
from lrnet_jax.training.optimizer import Decay

FILE = "config.json"
# Fields that change nothing of what a run computes, or its rounding: it may go on with others.
FREE = frozenset(
    {
        "data.data_dir",
        "data.workers",
        "train.accumulate",
        "train.log_every",
        "train.max_loss",
        "train.checkpoint_every",
        "train.checkpoint_minutes",
        "train.keep_checkpoints",
        "train.keep_every",
    }
)


class ConfigError(ValueError):
    """What the user asked for cannot be run; the message is one line that says what to change."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Images and what is done to them.

    Attributes:
      name: a data set of `lrnet_jax.data.open_dataset`.
      data_dir: where prepared data sets lie; none for TFDS's own default.
      image_size: height and width in training and evaluation; none for the data set's own.
      workers: processes that read and decode, for sets that are read from disk; none for one per
        CPU core.
      tolerate_bad_images: how many undecodable training images may be replaced; evaluation
        tolerates none.
      flip: mirror training images at random.
      shift: move training images by up to so many pixels at random (for small images).
      mixup_alpha: blend pairs of training images, shares from Beta(alpha, alpha); 0 for none.
      cutmix_alpha: paste a box of its partner into each training image, likewise; 0 for none. With
        both, each image takes one of them at random.
    """

    name: str = "imagenet2012"
    data_dir: str | None = None
    image_size: int | None = None
    workers: int | None = None
    tolerate_bad_images: int = 0
    flip: bool = True
    shift: int = 0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed in pairs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __post_init__(self) -> None:
        if self.workers is not None:
            _at_least("data.workers", self.workers, 0)
        _at_least("data.tolerate_bad_images", self.tolerate_bad_images, 0)
        _at_least("data.shift", self.shift, 0)
        _at_least("data.mixup_alpha", self.mixup_alpha, 0)
        _at_least("data.cutmix_alpha", self.cutmix_alpha, 0)
        if self.image_size is not None:
            _at_least("data.image_size", self.image_size, 1)


@dataclasses.dataclass(frozen=True)
class Attack:
    """Adversarial training: each step crafts its own images first (`lrnet_jax.training.attack`).

    Attributes:
      steps: of the attack; 0 for regular training.
      epsilon: how far a pixel may be moved, in levels of 0 to 255.
      step_size: likewise, of one step.
      targeted: towards a random wrong class, instead of away from the label.
      random_start: from a random point of the box, instead of from the image.
      mixed: leave every second image of the batch as it is.
    """

    steps: int = 0
    epsilon: float = 16.0
    step_size: float = 1.0
    targeted: bool = True
    random_start: bool = True
    mixed: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "epsilon", "step_size"):
            _at_least(f"attack.{name}", getattr(self, name), 0)


@dataclasses.dataclass(frozen=True)
class Optim:
    """SGD with momentum; the defaults are the paper's (section 4.1).

    Attributes:
      learning_rate: after the warm-up, for the whole batch as it is: 0.4 is for 1024 images, use
        0.1 for 256.
      momentum: of SGD.
      nesterov: whether the momentum looks ahead.
      weight_decay: on conv, 1x1 and fc weights.
      label_smoothing: share of the target given to all classes alike.
      warmup_epochs: linear from 0.
      decay: "steps" or "cosine".
      boundaries: epochs at which "steps" multiplies by decay_factor.
      decay_factor: see boundaries.
    """

    learning_rate: float = 0.4
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    warmup_epochs: float = 5.0
    decay: Decay = "steps"
    boundaries: tuple[float, ...] = (30.0, 60.0, 90.0)
    decay_factor: float = 0.1

    def __post_init__(self) -> None:
        _at_least("optim.learning_rate", self.learning_rate, 0)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        _at_least("optim.warmup_epochs", self.warmup_epochs, 0)
        for name in ("momentum", "label_smoothing"):
            _at_least_0_below_1(f"optim.{name}", getattr(self, name))
        if list(self.boundaries) != sorted(self.boundaries):
            raise ConfigError(f"optim.boundaries must rise, got {self.boundaries}")


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop.

    Attributes:
      batch_size: images per step over all devices.
      eval_batch_size: images per evaluation step over all devices.
      accumulate: parts into which each device cuts its share of a batch, one in memory at a time.
      max_loss: a step with a larger loss ends the run, as one with a loss that is not finite does;
        none for any.
      epochs: length of training.
      eval_every_epochs: evaluations during training, besides the one at the end; 0 for none.
      sync_batch_norm: statistics over the batch of all devices, instead of each device's (or of
        every model.batch_norm_images images, which is what the paper's recipes do).
      ema_decay: of an exponential moving average of the weights, which evaluation then uses; 0 for
        none. 0.9999 averages over some 10,000 steps.
      log_every: steps between fetches of the metrics from the device. Every step is logged; the
        device is asked for the numbers once in so many steps.
      checkpoint_every: steps between checkpoints, besides the one at the end.
      checkpoint_minutes: a checkpoint is also written when the last one is so old; 0 for never.
      keep_checkpoints: how many to keep, the newest. The one with the best evaluation is kept too.
      keep_every: checkpoints of steps that are a multiple of it are written and kept for good;
        none for no such.
    """

    batch_size: int = 1024
    eval_batch_size: int = 1024
    accumulate: int = 1
    max_loss: float | None = 1000.0
    epochs: float = 110.0
    eval_every_epochs: float = 5.0
    sync_batch_norm: bool = False
    ema_decay: float = 0.0
    log_every: int = 50
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 3
    keep_every: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "eval_batch_size",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            _at_least(f"train.{name}", getattr(self, name), 1)
        _at_least("train.eval_every_epochs", self.eval_every_epochs, 0)
        _at_least_0_below_1("train.ema_decay", self.ema_decay)
        _at_least("train.checkpoint_minutes", self.checkpoint_minutes, 0)
        if self.max_loss is not None and not self.max_loss > 0:
            raise ConfigError(f"train.max_loss must be more than 0, got {self.max_loss}")
        if self.sync_batch_norm and self.accumulate > 1:
            raise ConfigError(
                f"train.sync_batch_norm takes statistics over a whole batch, which "
                f"train.accumulate {self.accumulate} never holds at once; use "
                "--config.model.batch_norm_images=64 instead of it"
            )
        if self.keep_every is not None:
            _at_least("train.keep_every", self.keep_every, 1)
        if not self.epochs > 0:
            raise ConfigError(f"train.epochs must be more than 0, got {self.epochs}")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes.

    Attributes:
      recipe: the name it started from.
      network: a network of the zoo (`lrnet_jax.list_models()`).
      model: its fields; those that the recipe does not change follow `network`.
      seed: of initial weights, order of images and augmentation.
      data: see `Data`.
      optim: see `Optim`.
      train: see `Train`.
      attack: see `Attack`.
    """

    recipe: str
    network: str
    model: lrnet_jax.Variant
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    attack: Attack = dataclasses.field(default_factory=Attack)

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        if self.attack.steps and self.data.mixes:
            raise ConfigError(
                f"attack.steps {self.attack.steps} attacks images of one label, and mixed images "
                "have two; use --config.data.mixup_alpha=0 --config.data.cutmix_alpha=0"
            )
        images, batch = self.model.batch_norm_images, self.train.batch_size
        if self.train.sync_batch_norm:
            # The variant says where its statistics come from; this switch only sets it.
            model = dataclasses.replace(self.model, batch_norm_axis="batch", batch_norm_images=None)
            object.__setattr__(self, "model", model)
        elif images is not None and batch % images:
            raise ConfigError(
                f"train.batch_size {batch} is not divisible by model.batch_norm_images {images}; "
                f"use a multiple, or --config.model.batch_norm_images=none"
            )


def recipe(
    name: str,
    network: str,
    *,
    model: dict[str, Any] | None = None,
    **parts: Any,
) -> Config:
    """A Config from a network of the zoo and the fields to change.

    Args:
      name: of the recipe.
      network: of the zoo.
      model: fields of `lrnet_jax.Variant`.
      **parts: other fields of Config: seed, data, optim, train, attack.
    """
    variant = dataclasses.replace(lrnet_jax.get_variant(network), **(model or {}))
    return Config(recipe=name, network=network, model=variant, **parts)


def override(config: Config, path: str, text: str) -> Config:
    """A Config with one field set from the command line.

    Args:
      config: to start from.
      path: of the field, such as "optim.learning_rate".
      text: the value as typed; "none" where the field may be None, "3,4,6,3" for tuples.

    Raises:
      ConfigError: no such field (names the nearest), a section instead of a field, a value of the
        wrong type or out of range.
    """
    if path == "network":
        return _change_network(config, text)
    return _override(config, path.split("."), path, text)


def _override(node: Any, names: list[str], path: str, text: str) -> Any:
    known = [field.name for field in dataclasses.fields(node)]
    name, *rest = names
    if name not in known or (not rest and name == "recipe"):
        near = [*difflib.get_close_matches(name, known, n=1), *_homes_of(name)]
        parent = path.rsplit(name, 1)[0]
        hint = f"did you mean {near[0] if '.' in near[0] else parent + near[0]}?" if near else ""
        raise ConfigError(
            f"no field config.{path}; {hint or 'fields here are ' + ', '.join(known)}"
        )
    value = getattr(node, name)
    if dataclasses.is_dataclass(value):
        if not rest:
            fields = ", ".join(field.name for field in dataclasses.fields(value))
            raise ConfigError(f"config.{path} is a section; set one of its fields: {fields}")
        new = _override(value, rest, path, text)
    elif rest:
        raise ConfigError(f"config.{path}: {name} is a field, not a section")
    else:
        new = _parse(typing.get_type_hints(type(node))[name], text, path)
    try:
        return dataclasses.replace(node, **{name: new})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{path}={text}: {error}") from error


def _homes_of(name: str) -> list[str]:
    """Sections that do have a field of this name: the usual slip is to forget the section."""
    sections = {
        "model": lrnet_jax.Variant,
        "data": Data,
        "optim": Optim,
        "train": Train,
        "attack": Attack,
    }
    return [
        f"{section}.{name}"
        for section, kind in sections.items()
        if name in [field.name for field in dataclasses.fields(kind)]
    ]


def _change_network(config: Config, network: str) -> Config:
    """Another network of the zoo with the recipe's own changes kept."""
    before = lrnet_jax.get_variant(config.network)
    changed = {
        field.name: getattr(config.model, field.name)
        for field in dataclasses.fields(before)
        if getattr(config.model, field.name) != getattr(before, field.name)
    }
    try:
        variant = dataclasses.replace(lrnet_jax.get_variant(network), **changed)
        return dataclasses.replace(config, network=network, model=variant)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.network={network}: {error}") from error


def _parse(hint: Any, text: str, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        # "256" is an int, "256,512" a tuple, where a field takes both.
        kinds.sort(key=lambda kind: typing.get_origin(kind) is tuple and "," not in text)
        return _parse(kinds[0], text, path)
    if origin is Literal:
        if text not in arguments:
            near = difflib.get_close_matches(text, arguments, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"config.{path} must be one of {', '.join(arguments)}; got {text!r}{hint}"
            )
        return text
    if origin is tuple:
        items = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
        return tuple(_parse(arguments[0], item, path) for item in items)
    if hint is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ConfigError(f"config.{path} must be true or false, got {text!r}")
        return words[text.lower()]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise ConfigError(f"config.{path} must be {kind}, got {text!r}") from None
    return text


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(record: dict[str, Any]) -> Config:
    """The configuration of a saved record.

    Raises:
      ConfigError: the record is not a configuration of this version.
    """
    parts = {
        "model": lrnet_jax.Variant,
        "data": Data,
        "optim": Optim,
        "train": Train,
        "attack": Attack,
    }
    try:
        fields = {
            name: parts[name](**{key: _tuples(item) for key, item in value.items()})
            if name in parts
            else value
            for name, value in record.items()
        }
        return Config(**fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"not a configuration of this version of lrnet_jax: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load(path: pathlib.Path) -> Config:
    """Reads a config.json.

    Raises:
      ConfigError: unreadable.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return from_dict(record)


def differences(old: Config, new: Config) -> list[str]:
    """The fields in which what two configurations compute differs, as "a.b: old -> new"."""
    flat_old, flat_new = flatten(old), flatten(new)
    return [
        f"{path}: {flat_old[path]} -> {flat_new[path]}"
        for path in flat_new
        if flat_old[path] != flat_new[path] and path not in FREE
    ]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All fields as {"optim.learning_rate": 0.4, ...}."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{field.name}."))
        else:
            flat[prefix + field.name] = value
    return flat


def describe(config: Config) -> str:
    """All fields, one a line, as they would be typed."""
    return "\n".join(f"  --config.{path}={_text(value)}" for path, value in flatten(config).items())


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _at_least(name: str, number: float, least: float) -> None:
    if not number >= least:
        raise ConfigError(f"{name} must be at least {least}, got {number}")


def _at_least_0_below_1(name: str, number: float) -> None:
    if not 0 <= number < 1:
        raise ConfigError(f"{name} must be in [0, 1), got {number}")

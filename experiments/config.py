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
from lrnet_jax.training.devices import AXIS
from lrnet_jax.training.optimizer import Decay

FILE = "config.json"

# Metadata of fields. Those marked free change nothing of what a run computes, or only its rounding:
# a run may be resumed with other values. Those marked "same result" may not change within a run,
# but a finished run with another value still counts as a run of its recipe.
_FREE = {"mark": "free"}
_SAME_RESULT = {"mark": "same result"}


class ConfigError(ValueError):
    """What was asked for cannot be run; the message says in one line what to change."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, and how they are prepared.

    Attributes:
      name: a data set of `lrnet_jax.data.open_dataset`.
      data_dir: folder of the prepared data sets; none for the default of TFDS.
      image_size: height and width in training and evaluation; none for those of the data set.
      workers: number of processes that read and decode a data set on disk; none for one per CPU
        core.
      tolerate_bad_images: number of undecodable training images that may be replaced. Evaluation
        tolerates none.
      flip: whether training images are mirrored at random.
      shift: maximum number of pixels by which training images are moved at random; for small
        images.
      mixup_alpha: pairs of training images are blended with shares from Beta(alpha, alpha); 0 for
        none.
      cutmix_alpha: a box of its partner is pasted into each training image, with its area from
        Beta(alpha, alpha); 0 for none. With both, each image takes one of them at random.
    """

    name: str = "imagenet2012"
    data_dir: str | None = dataclasses.field(default=None, metadata=_FREE)
    image_size: int | None = None
    workers: int | None = dataclasses.field(default=None, metadata=_FREE)
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
        names = ("workers", "tolerate_bad_images", "shift", "mixup_alpha", "cutmix_alpha")
        _check_at_least(0, "data.", self, *names)
        _check_at_least(1, "data.", self, "image_size")


@dataclasses.dataclass(frozen=True)
class Attack:
    """Adversarial training: each step crafts its own images first (`lrnet_jax.training.attack`).

    Attributes:
      steps: number of steps of the attack; 0 for regular training.
      epsilon: maximum change of a pixel, in levels of 0 to 255.
      step_size: change of a pixel in one step, in levels of 0 to 255.
      targeted: whether the attack moves towards a random wrong class, or away from the label.
      random_start: whether it starts at a random point of the box, or at the image.
      mixed: whether every second image of the batch is left unchanged.
    """

    steps: int = 0
    epsilon: float = 16.0
    step_size: float = 1.0
    targeted: bool = True
    random_start: bool = True
    mixed: bool = False

    def __post_init__(self) -> None:
        _check_at_least(0, "attack.", self, "steps", "epsilon", "step_size")


@dataclasses.dataclass(frozen=True)
class Optim:
    """SGD with momentum; the defaults are the paper's (section 4.1).

    Attributes:
      learning_rate: rate after the warm-up, for the whole batch. It is not scaled with the batch
        size: 0.4 is for 1024 images, use 0.1 for 256.
      momentum: momentum of SGD.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: applied to conv, 1x1 and fc weights.
      label_smoothing: share of the target that all classes get alike.
      warmup_epochs: length of the linear rise from 0.
      decay: "steps" or "cosine".
      boundaries: epochs at which "steps" multiplies the rate by decay_factor.
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
        _check_at_least(0, "optim.", self, "learning_rate", "weight_decay", "warmup_epochs")
        _check_share("optim.", self, "momentum", "label_smoothing")
        if list(self.boundaries) != sorted(self.boundaries):
            raise ConfigError(f"optim.boundaries must rise, got {self.boundaries}")


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop.

    Attributes:
      batch_size: images per step over all devices.
      eval_batch_size: images per evaluation step over all devices.
      accumulate: number of parts into which each device cuts its share of a batch. One part is in
        memory at a time.
      max_loss: a step with a larger loss ends the run, as a loss that is not finite does; none for
        no limit.
      epochs: length of training.
      eval_every_epochs: epochs between evaluations, besides the one at the end; 0 for none.
      sync_batch_norm: whether statistics are taken over the batch of all devices. Otherwise they
        are taken over each device's share, or over every model.batch_norm_images images as in the
        paper's recipes.
      ema_decay: decay of an exponential moving average of the weights, which evaluation then uses;
        0 for none. 0.9999 averages over some 10,000 steps.
      log_every: steps between fetches of the metrics from the device. Every step is logged, but
        the values are fetched only once in so many steps.
      checkpoint_every: steps between checkpoints, besides the one at the end.
      checkpoint_minutes: a checkpoint is also written when the last one is this old; 0 for never.
      keep_checkpoints: number of newest checkpoints to keep, besides the one with the best
        evaluation.
      keep_every: checkpoints at multiples of this step are written and never deleted; none for no
        such checkpoints.
    """

    batch_size: int = 1024
    eval_batch_size: int = dataclasses.field(default=1024, metadata=_SAME_RESULT)
    accumulate: int = dataclasses.field(default=1, metadata=_FREE)
    max_loss: float | None = dataclasses.field(default=1000.0, metadata=_FREE)
    epochs: float = 110.0
    eval_every_epochs: float = dataclasses.field(default=5.0, metadata=_SAME_RESULT)
    sync_batch_norm: bool = False
    ema_decay: float = 0.0
    log_every: int = dataclasses.field(default=50, metadata=_FREE)
    checkpoint_every: int = dataclasses.field(default=1000, metadata=_FREE)
    checkpoint_minutes: float = dataclasses.field(default=10.0, metadata=_FREE)
    keep_checkpoints: int = dataclasses.field(default=3, metadata=_FREE)
    keep_every: int | None = dataclasses.field(default=None, metadata=_FREE)

    def __post_init__(self) -> None:
        names = ("batch_size", "eval_batch_size", "accumulate", "log_every", "checkpoint_every")
        _check_at_least(1, "train.", self, *names, "keep_checkpoints", "keep_every")
        _check_at_least(0, "train.", self, "eval_every_epochs", "checkpoint_minutes")
        _check_share("train.", self, "ema_decay")
        if self.max_loss is not None and not self.max_loss > 0:
            raise ConfigError(f"train.max_loss must be more than 0, got {self.max_loss}")
        if self.sync_batch_norm and self.accumulate > 1:
            raise ConfigError(
                f"train.sync_batch_norm takes statistics over a whole batch, which "
                f"train.accumulate {self.accumulate} never holds at once; use "
                "--config.model.batch_norm_images=64 instead of it"
            )
        if not self.epochs > 0:
            raise ConfigError(f"train.epochs must be more than 0, got {self.epochs}")


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

    recipe: str = dataclasses.field(metadata=_SAME_RESULT)
    network: str
    model: lrnet_jax.Variant
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    attack: Attack = dataclasses.field(default_factory=Attack)

    def __post_init__(self) -> None:
        _check_at_least(0, "", self, "seed")
        if self.attack.steps and self.data.mixes:
            raise ConfigError(
                f"attack.steps {self.attack.steps} attacks images of one label, and mixed images "
                "have two; use --config.data.mixup_alpha=0 --config.data.cutmix_alpha=0"
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


FREE = _marked("free")
# A variant is the library's, which knows nothing of runs: its two fields are named here.
SAME_RESULT = FREE | _marked("same result") | {"model.implementation", "model.remat"}


def to_dict(config: Config) -> dict[str, Any]:
    """All fields as JSON types, with the variant that is built."""
    return json.loads(json.dumps(dataclasses.asdict(_resolved(config))))


def from_dict(record: dict[str, Any]) -> Config:
    """The configuration of a saved record.

    Raises:
      ConfigError: the record is not a configuration of this version.
    """
    try:
        fields = {
            name: SECTIONS[name](**{key: _tuples(item) for key, item in value.items()})
            if name in SECTIONS
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
      ConfigError: the file cannot be read, or is not a configuration of this version.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return from_dict(record)


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


def _check_at_least(least: float, section: str, node: Any, *names: str) -> None:
    for name in names:
        number = getattr(node, name)
        if number is not None and not number >= least:
            raise ConfigError(f"{section}{name} must be at least {least}, got {number}")


def _check_share(section: str, node: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(node, name) < 1:
            raise ConfigError(f"{section}{name} must be in [0, 1), got {getattr(node, name)}")

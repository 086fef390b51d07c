"""The sections of a configuration: frozen dataclasses, each with its checks.

`experiments.config` has the whole, which checks what concerns two sections.
"""

import dataclasses
import math
from typing import Any

from lrnet_jax.training.attack import WHITE
from lrnet_jax.training.devices import Precision, Way
from lrnet_jax.training.optimizer import Decay, OptimizerName

# Metadata of fields. Those marked free change nothing of what a run computes, or only its rounding:
# a run may be resumed with other values. Those marked "same result" may not change within a run,
# but a finished run with another value still counts as a run of its recipe.
FREE = {"mark": "free"}
SAME_RESULT = {"mark": "same result"}


class ConfigError(ValueError):
    """What was asked for cannot be run; the message says in one line what to change."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, and how they are prepared.

    Attributes:
      name: a data set of `lrnet_jax.data.open_dataset`.
      data_dir: the folder of images, or of the data sets that TFDS prepared; none for the default
        of TFDS.
      image_size: height and width in training and evaluation; none for those of the data set.
      holdout: of a folder of images without a split of its own, the share that only evaluation
        gets.
      train_split: a split or a slice of one as TFDS writes it, such as "train[:90%]"; none for
        "train".
      eval_split: the same; none for "validation" ("val" in a folder), or "test".
      image_key: of a TFDS set, the name of the image feature; none for its input.
      label_key: of a TFDS set, the name of the label feature; none for its target.
      workers: number of processes that read and decode a data set on disk; none for one per CPU
        core.
      tolerate_bad_images: number of undecodable training images that may be replaced. Evaluation
        tolerates none.
      flip: whether training images are mirrored at random.
      shift: maximum number of pixels by which training images are moved at random; for small
        images.
      randaugment: number of random operations that each training image goes through
        (`lrnet_jax.data.rand_augment`); 0 for none.
      randaugment_magnitude: how strong they are, 0 to 30.
      random_erasing: probability that a box of a training image is erased.
      mixup_alpha: pairs of training images are blended with shares from Beta(alpha, alpha); 0 for
        none.
      cutmix_alpha: a box of its partner is pasted into each training image, with its area from
        Beta(alpha, alpha); 0 for none. With both, each image takes one of them at random.
    """

    name: str = "imagenet2012"
    data_dir: str | None = dataclasses.field(default=None, metadata=FREE)
    image_size: int | None = None
    holdout: float = 0.0
    train_split: str | None = None
    eval_split: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    workers: int | None = dataclasses.field(default=None, metadata=FREE)
    tolerate_bad_images: int = 0
    flip: bool = True
    shift: int = 0
    randaugment: int = 0
    randaugment_magnitude: float = 9.0
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed in pairs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __post_init__(self) -> None:
        names = ("workers", "tolerate_bad_images", "shift", "mixup_alpha", "cutmix_alpha")
        check_at_least(0, "data.", self, *names, "randaugment")
        check_between(0, 30, "data.", self, "randaugment_magnitude")
        check_between(0, 1, "data.", self, "random_erasing")
        check_at_least(1, "data.", self, "image_size")
        check_share("data.", self, "holdout")


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
        check_at_least(0, "attack.", self, "steps", "epsilon", "step_size")
        if self.epsilon > WHITE:
            raise ConfigError(
                f"attack.epsilon must be at most {WHITE:g}, from black to white, got {self.epsilon}"
            )


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser; the defaults are the paper's SGD with momentum (section 4.1).

    Attributes:
      name: rule by which gradients change the weights.
      learning_rate: rate after the warm-up, for the whole batch. It is not scaled with the batch
        size: 0.4 is for 1024 images, use 0.1 for 256.
      momentum: momentum of sgd.
      nesterov: whether the momentum is Nesterov's, for sgd and adamw.
      beta1: decay of the mean of gradients, for adamw and lamb.
      beta2: decay of the mean of their squares, for adamw and lamb.
      epsilon: added to the root of that mean.
      weight_decay: applied to conv, 1x1 and fc weights. It is part of the gradient in sgd, and not
        in the others.
      clip_norm: gradients with a larger norm are scaled down to it; none for no limit.
      multipliers: factors of the learning rate by patterns over parameter paths, as in
        "stem=0,stages/0=0.1,head=10". 0 freezes: no gradient is computed, and running statistics
        are kept. The last pattern that matches counts.
      layer_decay: factor of the learning rate from each block to the one below it; 1 for none.
      label_smoothing: share of the target that all classes get alike.
      warmup_epochs: length of the linear rise from 0.
      decay: how the rate falls after the warm-up: at the boundaries, or along half a cosine to 0.
      boundaries: epochs at which "steps" multiplies the rate by decay_factor.
      decay_factor: what the rate is multiplied by at each of the boundaries.
    """

    name: OptimizerName = "sgd"
    learning_rate: float = 0.4
    momentum: float = 0.9
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    multipliers: tuple[str, ...] = ()
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    warmup_epochs: float = 5.0
    decay: Decay = "steps"
    boundaries: tuple[float, ...] = (30.0, 60.0, 90.0)
    decay_factor: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(0, "optim.", self, "learning_rate", "weight_decay", "warmup_epochs")
        check_share("optim.", self, "momentum", "beta1", "beta2", "label_smoothing")
        check_above_0("optim.", self, "epsilon", "layer_decay")
        check_above_0("optim.", self, "clip_norm", no_limit="none")
        if self.layer_decay > 1:
            raise ConfigError(f"optim.layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.name == "lamb" and self.nesterov:
            raise ConfigError(
                "optim.nesterov: lamb has no Nesterov momentum; use "
                "--config.optim.nesterov=false, or --config.optim.name=adamw"
            )
        self.parsed_multipliers()
        check_finite("optim.", self, "boundaries", "decay_factor")
        if list(self.boundaries) != sorted(self.boundaries):
            raise ConfigError(f"optim.boundaries must rise, got {self.boundaries}")

    def parsed_multipliers(self) -> dict[str, float]:
        """The multipliers as numbers: ("stem=0", "head=10") -> {"stem": 0.0, "head": 10.0}.

        Raises:
          ConfigError: a text has another form.
        """
        found: dict[str, float] = {}
        for text in self.multipliers:
            pattern, _, number = text.partition("=")
            try:
                factor = float(number)
            except ValueError:
                factor = math.nan
            if not pattern or not 0 <= factor < math.inf:
                raise ConfigError(
                    "optim.multipliers must be pairs of a pattern and a factor of at least 0, such "
                    f"as stem=0,head=10; got {text!r}"
                )
            if pattern in found:
                raise ConfigError(f"optim.multipliers has {pattern!r} twice; leave one out")
            found[pattern] = factor
        return found


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop.

    Attributes:
      init_from: a run, one of its steps or an export, whose weights and statistics a new run starts
        with. Its head is taken where the classes are the same.
      fork_from: a run or one of its steps, which this run goes on from: with its weights, its
        optimiser and its place in the data, and the schedule of this configuration.
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
      drop_path: probability that an image skips the last residual block in training; it falls
        linearly to the first block. 0 for none.
      parallel: how a step runs on several devices. The numbers are the same but for rounding.
      precision: precision of products of float32 arrays on a GPU. tf32 is faster and keeps 11 bits
        of each factor.
      log_every: steps between fetches of the metrics from the device. Every step is logged, but
        the values are fetched only once in so many steps.
      checkpoint_every: steps between checkpoints, besides the one at the end.
      checkpoint_minutes: a checkpoint is also written when the last one is this old; 0 for never.
      keep_checkpoints: number of newest checkpoints to keep, besides the one with the best
        evaluation.
      keep_every: checkpoints at multiples of this step are written and never deleted; none for no
        such checkpoints.
    """

    init_from: str | None = None
    fork_from: str | None = None
    batch_size: int = 1024
    eval_batch_size: int = dataclasses.field(default=1024, metadata=SAME_RESULT)
    accumulate: int = dataclasses.field(default=1, metadata=FREE)
    max_loss: float | None = dataclasses.field(default=1000.0, metadata=FREE)
    epochs: float = 110.0
    eval_every_epochs: float = dataclasses.field(default=5.0, metadata=SAME_RESULT)
    sync_batch_norm: bool = False
    ema_decay: float = 0.0
    drop_path: float = 0.0
    parallel: Way = dataclasses.field(default="pmap", metadata=FREE)
    precision: Precision = "float32"
    log_every: int = dataclasses.field(default=50, metadata=FREE)
    checkpoint_every: int = dataclasses.field(default=1000, metadata=FREE)
    checkpoint_minutes: float = dataclasses.field(default=10.0, metadata=FREE)
    keep_checkpoints: int = dataclasses.field(default=3, metadata=FREE)
    keep_every: int | None = dataclasses.field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        names = ("batch_size", "eval_batch_size", "accumulate", "log_every", "checkpoint_every")
        check_at_least(1, "train.", self, *names, "keep_checkpoints", "keep_every")
        check_at_least(0, "train.", self, "eval_every_epochs", "checkpoint_minutes")
        check_above_0("train.", self, "epochs")
        check_above_0("train.", self, "max_loss", no_limit="none")
        check_share("train.", self, "ema_decay", "drop_path")
        if self.init_from is not None and self.fork_from is not None:
            raise ConfigError(
                f"train.init_from {self.init_from} and train.fork_from {self.fork_from} exclude "
                "each other; leave one out"
            )
        if self.sync_batch_norm and self.accumulate > 1:
            raise ConfigError(
                f"train.sync_batch_norm takes statistics over a whole batch, which "
                f"train.accumulate {self.accumulate} never holds at once; use "
                "--config.model.batch_norm_images=64 instead of it"
            )


def check_at_least(least: float, section: str, node: Any, *names: str) -> None:
    """Refuses fields of a section that are below a bound, or infinite.

    Raises:
      ConfigError: a field is; the message names it.
    """
    check_finite(section, node, *names)
    for name in names:
        number = getattr(node, name)
        if number is not None and not number >= least:
            raise ConfigError(f"{section}{name} must be at least {least}, got {number}")


def check_between(least: float, most: float, section: str, node: Any, *names: str) -> None:
    """Refuses fields of a section that are outside a range.

    Raises:
      ConfigError: a field is; the message names it.
    """
    for name in names:
        number = getattr(node, name)
        if not least <= number <= most:
            raise ConfigError(f"{section}{name} must be in [{least}, {most}], got {number}")


def check_above_0(section: str, node: Any, *names: str, no_limit: str | None = None) -> None:
    """Refuses fields of a section that are not above 0, or infinite.

    Args:
      section: the section with its dot, for messages.
      node: the section.
      *names: its fields.
      no_limit: what to type instead of infinity.

    Raises:
      ConfigError: a field is; the message names it.
    """
    check_finite(section, node, *names, no_limit=no_limit)
    for name in names:
        number = getattr(node, name)
        if number is not None and not number > 0:
            raise ConfigError(f"{section}{name} must be more than 0, got {number}")


def check_finite(section: str, node: Any, *names: str, no_limit: str | None = None) -> None:
    """Refuses infinite fields of a section, see `check_above_0`; NaN fails the other checks.

    Raises:
      ConfigError: a field is, or a number of it; the message names it.
    """
    for name in names:
        value = getattr(node, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and math.isinf(number):
                mend = f"; --config.{section}{name}={no_limit} is no limit" if no_limit else ""
                raise ConfigError(f"{section}{name} must be finite, got {number}{mend}")


def check_share(section: str, node: Any, *names: str) -> None:
    """Refuses fields of a section that are no share, that is, outside [0, 1).

    Raises:
      ConfigError: a field is; the message names it.
    """
    for name in names:
        if not 0 <= getattr(node, name) < 1:
            raise ConfigError(f"{section}{name} must be in [0, 1), got {getattr(node, name)}")

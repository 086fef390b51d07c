"""Builds what a run is made of from its configuration: the initial state and the steps."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lrnet_jax
from experiments import config as configs
from experiments.config import Config, ConfigError
from experiments.run.check_data import describe_images
from experiments.run.inputs import (
    make_attack,
    make_augment,
    make_drop_path,
    make_mix,
    make_normalize,
)
from lrnet_jax.data.dataset import Dataset
from lrnet_jax.functional import Tree, split
from lrnet_jax.training import steps
from lrnet_jax.training.devices import parallel, replicate
from lrnet_jax.training.freezing import freeze, with_frozen_statistics
from lrnet_jax.training.multipliers import frozen_paths, rate_factors
from lrnet_jax.training.optimizer import Adaptive, learning_rate_schedule, make_optimizer
from lrnet_jax.training.state import TrainState, init_state


class Run(NamedTuple):
    """What a run is made of.

    Attributes:
      state: the state before the first step, on all devices.
      train_step: (state, batch on the devices) -> (state, metrics); it reuses the state's memory.
      eval_step: ((params, batch_stats), batch on the devices) -> sums.
      steps_per_epoch: in general not a whole number.
      total_steps: length of the whole run.
      metadata: record of every checkpoint: enough to build the network and to evaluate it.
      origin: what the state has from another run, in lines.
    """

    state: TrainState
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    steps_per_epoch: float
    total_steps: int
    metadata: dict[str, Any]
    origin: tuple[str, ...] = ()


def assemble(config: Config, dataset: Dataset) -> Run:
    """Builds network, optimiser, state and steps; nothing is compiled yet.

    Raises:
      ConfigError: the run would have no step, or a multiplier does not fit the network.
    """
    steps_per_epoch = dataset.num_train / config.train.batch_size
    total_steps = count_steps(config, dataset)
    model = lrnet_jax.create_from_variant(
        config.variant, dataset.num_classes, rngs=nnx.Rngs(config.seed)
    )
    functional, params, batch_stats = split(model)
    normalize = make_normalize(config, dataset)
    schedule = _schedule(config, steps_per_epoch, total_steps)
    factors = _rate_factors(config, params)
    frozen = freeze(params, batch_stats, frozen_paths(factors))
    functional = with_frozen_statistics(functional, model, frozen.statistics)
    optimizer = _optimizer(config, schedule, factors)
    train_step = steps.TrainStep(
        functional,
        optimizer,
        schedule,
        augment=make_augment(config, dataset, normalize),
        mix=make_mix(config),
        drop_path=make_drop_path(config),
        label_smoothing=config.optim.label_smoothing,
        ema_decay=config.train.ema_decay,
        attack=make_attack(config, normalize, functional),
        accumulate=config.train.accumulate,
        frozen=frozen,
    )
    has_ema = config.train.ema_decay > 0
    state = init_state(params, batch_stats, optimizer, config.seed, ema=has_ema)
    ways: Any = {"way": config.train.parallel, "precision": config.train.precision}
    return Run(
        state=replicate(state),
        train_step=parallel(train_step, donate=True, **ways),
        eval_step=parallel(steps.eval_step(functional, normalize), **ways),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        metadata=_metadata(config, dataset),
    )


def count_steps(config: Config, dataset: Dataset) -> int:
    """The number of steps of a run.

    Raises:
      ConfigError: there would be none.
    """
    total_steps = round(config.train.epochs * dataset.num_train / config.train.batch_size)
    if total_steps < 1:
        raise ConfigError(
            f"train.epochs {config.train.epochs} is less than one step of "
            f"train.batch_size {config.train.batch_size}"
        )
    return total_steps


def abstract_state(config: Config, num_classes: int) -> TrainState:
    """The shapes and dtypes of a run's state."""
    model = nnx.eval_shape(
        lambda: lrnet_jax.create_from_variant(config.variant, num_classes, nnx.Rngs(0))
    )
    _, params, batch_stats = split(model)
    optimizer = _optimizer(config, lambda step: 0.0 * step, _rate_factors(config, params))
    has_ema = config.train.ema_decay > 0
    return jax.eval_shape(
        lambda params, stats: init_state(params, stats, optimizer, config.seed, ema=has_ema),
        params,
        batch_stats,
    )


def _rate_factors(config: Config, params: Tree) -> dict[str, float]:
    """The factor of each parameter's learning rate, by its path."""
    patterns = config.optim.parsed_multipliers()
    try:
        return rate_factors(params, patterns, layer_decay=config.optim.layer_decay)
    except ValueError as error:
        raise ConfigError(f"optim.multipliers: {error}") from error


def _optimizer(
    config: Config, schedule: optax.Schedule, factors: dict[str, float]
) -> optax.GradientTransformation:
    optim = config.optim
    return make_optimizer(
        optim.name,
        schedule,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        adaptive=Adaptive(optim.beta1, optim.beta2, optim.epsilon),
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        factors=factors,
    )


def _schedule(config: Config, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    return learning_rate_schedule(
        config.optim.learning_rate,
        total_steps=total_steps,
        warmup_steps=round(config.optim.warmup_epochs * steps_per_epoch),
        decay=config.optim.decay,
        boundaries=[round(epoch * steps_per_epoch) for epoch in config.optim.boundaries],
        decay_factor=config.optim.decay_factor,
    )


def _metadata(config: Config, dataset: Dataset) -> dict[str, Any]:
    """The record of a checkpoint: enough to build the network and to evaluate it."""
    record = configs.to_dict(config)
    return {
        "network": config.network,
        "variant": record["model"],
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
        "image_size": dataset.image_size,
        "resize": dataset.resize,
        "images": describe_images(dataset),
        "config": record,
        "versions": {"lrnet_jax": lrnet_jax.__version__, "jax": jax.__version__},
    }


def num_params(params: Any) -> int:
    """Number of parameters."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))


def check_devices(config: Config) -> None:
    """Refuses batches that the devices cannot share.

    Raises:
      ConfigError: a batch does not fit; the message names the nearest that does.
    """
    devices, train = jax.device_count(), config.train
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(train, name)
        if size % devices:
            near = max(devices, size - size % devices)
            raise ConfigError(
                f"train.{name} {size} is not divisible by {devices} devices; "
                f"use --config.train.{name}={near}"
            )
    share, parts = train.batch_size // devices, train.accumulate
    if share % parts:
        raise ConfigError(
            f"{share} images a device (train.batch_size {train.batch_size} over {devices} "
            f"devices) are not divisible by train.accumulate {parts}; use "
            f"--config.train.accumulate={math.gcd(share, parts)}"
        )
    _check_part(config, share // parts, devices)


def _check_part(config: Config, part: int, devices: int) -> None:
    """Refuses a part of a device's batch that cannot be mixed in pairs or normalised in groups."""
    size, parts = config.train.batch_size, config.train.accumulate
    each = f"{part} images a device" + f" and part (train.accumulate {parts})" * (parts > 1)
    each += f" (train.batch_size {size} over {devices} devices)"
    if config.data.mixes and part % 2:
        raise ConfigError(
            f"{each} cannot be mixed in pairs; "
            f"use --config.train.batch_size={size + devices * parts}, or "
            "--config.data.mixup_alpha=0 --config.data.cutmix_alpha=0"
        )
    images = config.variant.batch_norm_images
    if images is not None and part % images:
        raise ConfigError(
            f"{each} are not divisible by model.batch_norm_images {images}; use "
            f"--config.train.batch_size={images * devices * parts}, "
            "or another --config.model.batch_norm_images"
        )

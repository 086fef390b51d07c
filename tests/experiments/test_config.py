"""Configurations: recipes, overrides, and the answers to slips."""

import dataclasses
import json

import pytest

import lrnet_jax
from experiments import config as configs
from experiments.cli.overrides import describe, override
from experiments.config import ConfigError
from experiments.recipes import RECIPES

QUICK = RECIPES["quickstart"]


def test_the_papers_recipe():
    """Section 4.1 of the paper."""
    config = RECIPES["lrnet50"]
    assert config.model == dataclasses.replace(
        lrnet_jax.get_variant("lrnet50"), dtype="bfloat16", batch_norm_images=64
    )
    assert (config.train.batch_size, config.train.epochs) == (1024, 110)
    assert (config.optim.learning_rate, config.optim.momentum) == (0.4, 0.9)
    assert (config.optim.weight_decay, config.optim.warmup_epochs) == (1e-4, 5)
    assert (config.optim.decay, config.optim.boundaries) == ("steps", (30, 60, 90))


def test_the_modern_recipe():
    paper, modern = RECIPES["lrnet50"], RECIPES["lrnet50_modern"]
    assert modern.model == paper.model
    assert modern.optim.decay == "cosine"
    assert modern.optim.label_smoothing == 0.1
    assert (modern.data.mixup_alpha, modern.data.cutmix_alpha) == (0.2, 1.0)
    assert modern.train.ema_decay == 0.9999
    assert not paper.data.mixes
    assert (paper.optim.label_smoothing, paper.train.ema_decay) == (0, 0)


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_survive_json_and_their_own_description(name):
    config = RECIPES[name]
    assert config.recipe == name
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config
    typed = dataclasses.replace(config, seed=99)
    for line in describe(config).splitlines():
        path, text = line.strip().removeprefix("--config.").split("=")
        if path not in ("recipe", "network"):
            typed = override(typed, path, text)
    assert typed == config


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("optim.learning_rate", "2e-1", 0.2),
        ("train.batch_size", "64", 64),
        ("data.flip", "false", False),
        ("data.data_dir", "/data", "/data"),
        ("data.data_dir", "none", None),
        ("optim.boundaries", "1,2.5", (1.0, 2.5)),
        ("optim.decay", "steps", "steps"),
        ("model.kernel_size", "5", 5),
        ("model.depths", "(1, 2, 3)", (1, 2, 3)),
        ("model.stage_channels", "64", 64),
        ("model.stage_channels", "64,96", (64, 96)),
        ("model.scale", "0.5", 0.5),
        ("seed", "7", 7),
    ],
)
def test_override(path, text, value):
    node = override(QUICK, path, text)
    for name in path.split("."):
        node = getattr(node, name)
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("optim.learnig_rate", "1", "no field config.optim.learnig_rate; did you mean optim.learn"),
        ("learning_rate", "1", "did you mean optim.learning_rate?"),
        ("optm.momentum", "1", "did you mean optim"),
        ("optim", "1", "config.optim is a section; set one of its fields: learning_rate,"),
        ("seed.x", "1", "seed is a field, not a section"),
        ("recipe", "x", "no field config.recipe"),
        ("train.batch_size", "1e3", "config.train.batch_size must be a whole number, got '1e3'"),
        ("optim.momentum", "big", "must be a number, got 'big'"),
        ("optim.momentum", "1", r"optim.momentum must be in \[0, 1\), got 1.0"),
        ("optim.boundaries", "3,2", "boundaries must rise"),
        ("data.mixup_alpha", "-1", "data.mixup_alpha must be at least 0, got -1.0"),
        ("data.cutmix_alpha", "nan", "data.cutmix_alpha must be at least 0, got nan"),
        ("train.ema_decay", "1", r"train.ema_decay must be in \[0, 1\), got 1.0"),
        ("data.flip", "maybe", "must be true or false, got 'maybe'"),
        ("optim.decay", "step", "must be one of steps, cosine; got 'step'; did you mean steps?"),
        ("model.kernel_size", "8", "kernel_size must be odd, got 8; use 7 or 9"),
        ("model.batch_norm_images", "7", "is not divisible by model.batch_norm_images 7"),
        ("train.epochs", "nan", "train.epochs must be more than 0, got nan"),
        ("network", "lrnet5", "no network is named 'lrnet5'; did you mean lrnet50"),
    ],
)
def test_slips_are_answered_in_one_line(path, text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        override(QUICK, path, text)
    assert "\n" not in str(raised.value)


def test_another_network_keeps_the_recipes_own_changes():
    config = override(RECIPES["lrnet50"], "network", "resnet26")
    assert config.model == dataclasses.replace(
        lrnet_jax.get_variant("resnet26"), dtype="bfloat16", batch_norm_images=64
    )


def test_sync_batch_norm_sets_the_variants_axis():
    config = override(RECIPES["lrnet50"], "train.sync_batch_norm", "true")
    assert config.variant.batch_norm_axis == "batch"
    assert config.variant.batch_norm_images is None
    # What is saved is what is built, as in every config.json that exists.
    saved = configs.to_dict(config)
    assert saved["model"]["batch_norm_axis"] == "batch"
    assert saved["model"]["batch_norm_images"] is None
    assert configs.differences(configs.from_dict(saved), config) == []


def test_fields_that_may_change():
    """On resume, and between runs of one recipe."""
    free = {
        "data.data_dir", "data.workers", "train.accumulate", "train.log_every", "train.max_loss",
        "train.checkpoint_every", "train.checkpoint_minutes", "train.keep_checkpoints",
        "train.keep_every",
    }  # fmt: skip
    assert free == configs.FREE
    assert free | {
        "recipe", "model.implementation", "model.remat", "train.eval_batch_size",
        "train.eval_every_epochs",
    } == configs.SAME_RESULT  # fmt: skip
    other = override(override(QUICK, "train.log_every", "7"), "model.remat", "true")
    assert configs.differences(QUICK, other) == ["model.remat: False -> True"]
    assert configs.differences(QUICK, other, ignored=configs.SAME_RESULT) == []


def test_differences_name_the_fields():
    other = override(QUICK, "optim.momentum", "0.5")
    assert configs.differences(QUICK, QUICK) == []
    assert configs.differences(QUICK, other) == ["optim.momentum: 0.9 -> 0.5"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 1}', '{"model": {"wings": 2}}'])
def test_a_config_file_that_is_none(tmp_path, text):
    path = tmp_path / configs.FILE
    path.write_text(text)
    with pytest.raises(ConfigError):
        configs.load(path)

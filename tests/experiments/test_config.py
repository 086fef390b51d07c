"""Configurations: recipes, their saved form, fields that may change."""

import dataclasses
import json

import pytest

import lrnet_jax
from experiments import config as configs
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run.overrides import describe, override

QUICK = RECIPES["quickstart"]


def test_the_papers_recipe():
    """Section 4.1 of the paper."""
    config = RECIPES["lrnet50"]
    assert config.model == dataclasses.replace(
        lrnet_jax.get_variant("lrnet50"), dtype="bfloat16", batch_norm_images=64, remat="blocks"
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
    assert (modern.data.randaugment, modern.data.random_erasing) == (2, 0.1)
    assert (modern.train.ema_decay, modern.train.drop_path) == (0.9999, 0.05)
    assert not paper.data.mixes
    assert (paper.optim.label_smoothing, paper.train.ema_decay) == (0, 0)


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_survive_json_and_their_own_description(name):
    config = RECIPES[name]
    assert config.recipe == name
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config
    typed = dataclasses.replace(config, seed=99)
    for line in describe(config).splitlines():
        path, _, text = line.strip().removeprefix("--config.").partition("=")
        if path not in ("recipe", "network"):
            typed = override(typed, path, text)
    assert typed == config


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
        "train.keep_every", "train.parallel", "model.remat",
    }  # fmt: skip
    assert free == configs.FREE
    assert free | {
        "recipe", "model.implementation", "train.eval_batch_size", "train.eval_every_epochs",
    } == configs.SAME_RESULT  # fmt: skip
    other = override(override(QUICK, "train.log_every", "7"), "model.remat", "blocks")
    assert configs.differences(QUICK, other) == []
    assert configs.differences(QUICK, other, ignored=frozenset()) == [
        "model.remat: none -> blocks", "train.log_every: 50 -> 7",
    ]  # fmt: skip
    other = override(other, "model.implementation", "xla")
    assert configs.differences(QUICK, other) == ["model.implementation: None -> xla"]
    assert configs.differences(QUICK, other, ignored=configs.SAME_RESULT) == []


def test_a_configuration_of_before_a_field_was_there():
    """Fields that a saved record lacks have their defaults, which are what was computed before."""
    record = configs.to_dict(QUICK)
    for field in (
        "name", "beta1", "beta2", "epsilon", "clip_norm", "multipliers", "layer_decay",
    ):  # fmt: skip
        del record["optim"][field]
    for field in ("drop_path", "init_from", "fork_from"):
        del record["train"][field]
    for field in ("randaugment", "randaugment_magnitude", "random_erasing"):
        del record["data"][field]
    record["model"]["remat"] = False  # two of today's three choices were true and false
    assert configs.from_dict(record) == QUICK


def test_multipliers_are_read_in_their_order():
    config = override(QUICK, "optim.multipliers", "stem=0, stages/0=0.1,head=10")
    assert list(config.optim.parsed_multipliers().items()) == [
        ("stem", 0.0), ("stages/0", 0.1), ("head", 10.0),
    ]  # fmt: skip
    assert "--config.optim.multipliers=stem=0,stages/0=0.1,head=10" in describe(config)
    assert configs.from_dict(configs.to_dict(config)) == config


def test_differences_name_the_fields():
    other = override(QUICK, "optim.momentum", "0.5")
    assert configs.differences(QUICK, QUICK) == []
    assert configs.differences(QUICK, other) == ["optim.momentum: 0.9 -> 0.5"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 1}', '{"model": {"wings": 2}}'])
def test_a_config_file_that_is_none(tmp_path, text):
    path = tmp_path / configs.FILE
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        configs.load(path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sead", 1, "there is no field sead"),
        ("optim.learning_rates", 1, "there is no field optim.learning_rates"),
        ("optim", 3, "optim must be an object, got 3"),
        ("network", 3, "network must be a text, got 3"),
        ("seed", "one", "seed must be a whole number, got 'one'"),
        ("seed", True, "seed must be a whole number, got True"),
        ("data.flip", "yes", "data.flip must be true or false, got 'yes'"),
        ("data.image_size", 2.5, "data.image_size must be a whole number or null, got 2.5"),
        ("optim.decay", "linear", "optim.decay must be one of steps, cosine, got 'linear'"),
        ("optim.boundaries", [1, "x"], "optim.boundaries must be a list of numbers, got [1, 'x']"),
        ("model.kernel_size", 4, "kernel_size must be odd, got 4"),
        ("model.in_channels", 1, "in_channels 1 does not fit the images of data sets, which are"),
    ],
)
def test_an_edited_config_file_is_answered_by_its_field(tmp_path, path, value, message):
    record = configs.to_dict(QUICK)
    *sections, name = path.split(".")
    node = record
    for section in sections:
        node = node[section]
    node[name] = value
    file = tmp_path / configs.FILE
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError) as raised:
        configs.load(file)
    text = str(raised.value)
    assert text.startswith(f"{file}: not a configuration of this version of lrnet_jax: ")
    assert message in text
    assert "\n" not in text


def test_grey_networks_do_not_fit_the_images():
    with pytest.raises(ConfigError, match=r"RGB; use --config.model.in_channels=3"):
        override(QUICK, "model.in_channels", "1")

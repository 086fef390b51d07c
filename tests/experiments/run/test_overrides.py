"""Fields of a configuration that are changed as text, and the answers to slips."""

import dataclasses

import pytest

import lrnet_jax
from experiments.config import ConfigError
from experiments.recipes import RECIPES
from experiments.run.overrides import describe_changes, override, override_all

QUICK = RECIPES["quickstart"]


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
        ("optim", "1", "config.optim is a section; set one of its fields: name, learning_rate,"),
        ("seed.x", "1", "seed is a field, not a section"),
        ("recipe", "x", "no field config.recipe"),
        ("train.batch_size", "1e3", "config.train.batch_size must be a whole number, got '1e3'"),
        ("optim.momentum", "big", "must be a number, got 'big'"),
        ("optim.momentum", "1", r"optim.momentum must be in \[0, 1\), got 1.0"),
        ("optim.boundaries", "3,2", "boundaries must rise"),
        ("data.mixup_alpha", "-1", "data.mixup_alpha must be at least 0, got -1.0"),
        ("data.cutmix_alpha", "nan", "data.cutmix_alpha must be at least 0, got nan"),
        ("data.randaugment", "-1", "data.randaugment must be at least 0, got -1"),
        ("data.randaugment_magnitude", "31", r"magnitude must be in \[0, 30\], got 31"),
        ("data.random_erasing", "1.1", r"data.random_erasing must be in \[0, 1\], got 1.1"),
        ("train.ema_decay", "1", r"train.ema_decay must be in \[0, 1\), got 1.0"),
        ("train.drop_path", "1", r"train.drop_path must be in \[0, 1\), got 1.0"),
        ("data.flip", "maybe", "must be true or false, got 'maybe'"),
        ("optim.decay", "step", "must be one of steps, cosine; got 'step'; did you mean steps?"),
        (
            "optim.name",
            "adam",
            "config.optim.name must be one of sgd, adamw, lamb; got 'adam'; did you mean adamw",
        ),
        ("optim.beta1", "1", r"optim.beta1 must be in \[0, 1\), got 1.0"),
        ("optim.beta2", "-0.1", r"optim.beta2 must be in \[0, 1\), got -0.1"),
        ("optim.epsilon", "0", "optim.epsilon must be more than 0, got 0.0"),
        ("optim.clip_norm", "0", "optim.clip_norm must be more than 0, got 0.0"),
        ("optim.clip_norm", "nan", "optim.clip_norm must be more than 0, got nan"),
        ("optim.layer_decay", "1.5", r"optim.layer_decay must be in \(0, 1\], got 1.5"),
        ("optim.layer_decay", "0", "optim.layer_decay must be more than 0, got 0"),
        (
            "optim.multipliers",
            "stem",
            "optim.multipliers must be pairs .* such as stem=0,head=10; got 'stem'",
        ),
        ("optim.multipliers", "stem=-1", "got 'stem=-1'"),
        ("optim.multipliers", "=1", "got '=1'"),
        ("optim.multipliers", "stem=0,head=ten", "got 'head=ten'"),
        ("optim.multipliers", "stem=0,stem=1", "optim.multipliers has 'stem' twice"),
        ("model.kernel_size", "8", "kernel_size must be odd, got 8; use 7 or 9"),
        ("model.batch_norm_images", "7", "is not divisible by model.batch_norm_images 7"),
        ("train.epochs", "nan", "train.epochs must be more than 0, got nan"),
        ("train.epochs", "0", "train.epochs must be more than 0, got 0.0"),
        ("train.epochs", "inf", "train.epochs must be finite, got inf$"),
        ("train.batch_size", "0", "train.batch_size must be at least 1, got 0"),
        ("train.max_loss", "-1", "train.max_loss must be more than 0, got -1"),
        ("train.max_loss", "inf", "finite, got inf; --config.train.max_loss=none is no limit"),
        ("optim.clip_norm", "inf", "finite, got inf; --config.optim.clip_norm=none is no limit"),
        ("optim.learning_rate", "inf", "optim.learning_rate must be finite, got inf"),
        ("optim.boundaries", "30,inf", "optim.boundaries must be finite, got inf"),
        ("optim.name", "lamb", "no Nesterov momentum; use --config.optim.nesterov=false, or "),
        ("network", "lrnet5", "no network is named 'lrnet5'; did you mean lrnet50"),
    ],
)
def test_bad_values_are_answered_in_one_line(path, text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        override(QUICK, path, text)
    assert "\n" not in str(raised.value)


def test_only_the_outcome_of_several_changes_is_checked():
    """lamb has no Nesterov momentum, which the recipe has."""
    changes = [("optim.name", "lamb"), ("seed", "3"), ("optim.nesterov", "false")]
    for order in (changes, changes[::-1]):
        config = override_all(QUICK, order)
        assert (config.optim.name, config.optim.nesterov, config.seed) == ("lamb", False, 3)
    changes = [("model.kernel_size", "5"), ("network", "resnet_small")]
    assert override_all(QUICK, changes).model == dataclasses.replace(
        lrnet_jax.get_variant("resnet_small"), kernel_size=5
    )


def test_another_network_keeps_the_recipes_own_changes():
    config = override(RECIPES["lrnet50"], "network", "resnet26")
    assert config.model == dataclasses.replace(
        lrnet_jax.get_variant("resnet26"), dtype="bfloat16", batch_norm_images=64
    )


@pytest.mark.parametrize(
    ("recipe", "changes", "remat"),
    [
        ("lrnet50", {"network": "resnet26"}, "none"),
        ("lrnet50", {"network": "lrnet26_nl"}, "none"),
        ("lrnet50", {"network": "lrnet26"}, "blocks"),
        ("resnet50", {"network": "lrnet101"}, "blocks"),
        ("finetune", {"network": "resnet50"}, "none"),
        # What is typed counts.
        ("lrnet50", {"network": "resnet26", "model.remat": "blocks"}, "blocks"),
        ("resnet50", {"model.remat": "stem", "network": "lrnet50"}, "stem"),
        # Recipes for CPUs keep all.
        ("quickstart", {"network": "resnet_small"}, "none"),
        ("quickstart", {"network": "lrnet26"}, "none"),
    ],
)
def test_what_is_computed_again_follows_the_network_that_is_named_at_last(recipe, changes, remat):
    assert override_all(RECIPES[recipe], list(changes.items())).model.remat == remat


def test_a_choice_of_ones_own_stays_with_another_network():
    config = override(RECIPES["lrnet50"], "model.remat", "stem")
    assert override(config, "network", "lrnet26").model.remat == "stem"


def test_what_differs_is_listed_as_it_would_be_typed():
    config = override_all(QUICK, [("optim.clip_norm", "1"), ("train.epochs", "3")])
    assert describe_changes(QUICK, QUICK) == []
    assert describe_changes(config, QUICK) == [
        "  --config.optim.clip_norm=1.0", "  --config.train.epochs=3.0",
    ]  # fmt: skip
    config = override_all(QUICK, [("network", "resnet_small"), ("model.width", "12")])
    assert describe_changes(config, QUICK) == [
        "  --config.network=resnet_small", "  --config.model.width=12",
    ]  # fmt: skip

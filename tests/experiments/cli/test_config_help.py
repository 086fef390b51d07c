"""What --config=help says of recipes and fields."""

import dataclasses
import re

import pytest

from experiments.cli.config_help import help_text, meanings
from experiments.config import SECTIONS, Config
from experiments.recipes import RECIPES
from experiments.run.overrides import override


@pytest.fixture(scope="module")
def text():
    return help_text()


def entry(text, path):
    """The flag with its values and the meaning, each in one line."""
    lines = text[text.index(f"  --config.{path}=") :].split("\n")[1:]
    stop = next((n for n, line in enumerate(lines) if not line.startswith(" " * 6)), len(lines))
    first = text[text.index(f"  --config.{path}=") :].partition("\n")[0]
    return " ".join(f"{first} {' '.join(lines[:stop])}".split())


@pytest.mark.parametrize("kind", [Config, *SECTIONS.values()])
def test_every_field_has_a_meaning(kind):
    found = meanings(kind)
    assert list(found) == [field.name for field in dataclasses.fields(kind)]
    assert all(found.values())


def test_every_recipe_and_every_field_is_listed_once(text):
    for name in RECIPES:
        assert len(re.findall(rf"^  {re.escape(name)} ", text, re.MULTILINE)) == 1
    listed = re.findall(r"^  --config\.([\w.]+)=", text, re.MULTILINE)
    fields = [
        f"{name}.{f.name}" for name, kind in SECTIONS.items() for f in dataclasses.fields(kind)
    ]
    assert sorted(listed) == sorted(["network", "seed", *fields])


def test_defaults_can_be_typed(text):
    """Each is a value of its field, and that of the dataclass."""
    base = Config(recipe="", network="lrnet26", model=SECTIONS["model"]())
    config = base
    for path, default in re.findall(r"^  --config\.([\w.]+)=(\S*)", text, re.MULTILINE):
        config = override(config, path, default)
    assert config == base


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "optim.name",
            "--config.optim.name=sgd (one of sgd, adamw, lamb) Rule by which gradients change the "
            "weights.",
        ),
        (
            "train.keep_every",
            "--config.train.keep_every=none (a whole number or none) Checkpoints at multiples of "
            "this step are written and never deleted; none for no such checkpoints. It may change "
            "when a run is resumed.",
        ),
        (
            "optim.boundaries",
            "--config.optim.boundaries=30.0,60.0,90.0 (numbers separated by commas) Epochs at "
            'which "steps" multiplies the rate by decay_factor.',
        ),
        (
            "model.channels_per_group",
            "--config.model.channels_per_group=8 (a whole number) m, how many channels share a "
            "weight, or -1 for all (one group per layer).",
        ),
        (
            "model.stem_pool",
            "--config.model.stem_pool=true (true or false) Whether a 3x3 max pool of stride 2 "
            "follows. Small images need false.",
        ),
    ],
)
def test_an_entry(text, path, expected):
    assert entry(text, path) == expected


def test_names_are_listed_where_a_text_is_one(text):
    assert "lrnet_small" in entry(text, "network")
    assert "jax_triton" in entry(text, "model.implementation")
    assert "fashion_mnist_subset, " in entry(text, "data.name")


def test_lines_fit_a_terminal(text):
    assert max(map(len, text.splitlines())) < 100

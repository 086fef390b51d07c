"""docs/howto/own_images.md is run from its first command to its last."""

import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import lrnet_jax
from experiments.cli import command_line
from experiments.train import train
from tests.experiments.tiny_run import TINY, tiny

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "own_images.md"
# The page is about the network of quickstart, which is cut down here.
CUT_DOWN = [f"--config.{path}={TINY[path]}" for path in TINY if path.startswith("model.")]
CUT_DOWN += ["--config.train.epochs=3", "--config.train.eval_batch_size=32"]  # four devices
PICTURE = "runs/photographs/val/chelsea/000.jpg"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with a run of quickstart."""
    folder = tmp_path_factory.mktemp("own_images")
    train(tiny(**{"train.eval_batch_size": "1000"}), folder / "runs/quickstart")
    return folder


def script():
    """The Python of the page."""
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return text


def commands():
    """The commands of the example before its last: [(module, arguments)]."""
    example = PAGE.read_text().partition("## An example")[2].partition("\n\nThe images are")[0]
    typed = [
        shlex.split(line) for line in example.splitlines() if line.startswith("    python -m ")
    ]
    return [(module, arguments) for _, _, module, *arguments in typed]


def run(module, *arguments):
    command = importlib.import_module(module)
    return command.main(command_line.parse(arguments, command.define_flags))


def predicted(capsys, checkpoint):
    """Probabilities by class names, of the predictions that the page asks for."""
    capsys.readouterr()
    run("experiments.predict", f"--run={checkpoint}", "--json", PICTURE)
    record = json.loads(capsys.readouterr().out)
    return {guess["name"]: guess["probability"] for guess in record["guesses"]}


def test_all_of_it(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names = [module.removeprefix("experiments.") for module, _ in commands()]
    assert names == ["photographs", "train", "evaluate", "predict", "export", "predict"]
    trainer = importlib.import_module("experiments.train")
    monkeypatch.setattr(trainer, "survive_closed_pipes", lambda: None)  # pytest has no pipes
    for module, arguments in commands():
        run(module, *arguments, *(CUT_DOWN if module == "experiments.train" else ()))
    printed = capsys.readouterr().out
    assert "on 30 images" in printed
    assert printed.count(PICTURE) == 2
    assert pathlib.Path("runs/mine_report/report.html").exists()

    want = predicted(capsys, "runs/mine")
    assert set(want) == {"astronaut", "chelsea", "coffee"}
    assert sum(want.values()) == pytest.approx(1)
    assert predicted(capsys, "exports/mine") == pytest.approx(want, abs=1e-5)

    guesses = lrnet_jax.load_exported("exports/mine").predict(PICTURE)
    assert {guess.name: guess.probability for guess in guesses} == pytest.approx(want, abs=1e-5)

    absent = ("lrnet_jax", "pallas_kernels", "experiments", "flax", "orbax", "optax")
    block = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + script()], capture_output=True, text=True, check=True
    )
    lines = (line.rpartition(" ") for line in done.stdout.splitlines())
    alone = {name: float(probability) for name, _, probability in lines}
    assert alone == pytest.approx(want, abs=1e-5)

"""docs/howto/own_images.md is run from its first command to its last."""

import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from experiments.cli import command_line
from experiments.train import train
from tests.experiments.tiny_run import TINY, tiny

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "own_images.md"
# The page is about quickstart; its network is cut down here, and loads images in this process.
CUT_DOWN = [f"--config.{path}={TINY[path]}" for path in TINY if path.startswith("model.")]
CUT_DOWN += ["--config.data.workers=0"]
PICTURE = "images/rocket/3.jpg"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with the photographs and a run of quickstart."""
    folder = tmp_path_factory.mktemp("own_images")
    (folder / "experiments/bench").mkdir(parents=True)
    photographs = pathlib.Path("experiments/bench/photographs")
    (folder / photographs).symlink_to(ROOT / photographs)
    train(tiny(**{"train.eval_batch_size": "1000"}), folder / "runs/quickstart")
    return folder


def scripts():
    """The Python of the page."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def commands():
    """The commands of the example: [(module, arguments)]."""
    example = PAGE.read_text().partition("## An example")[2].partition("## The export")[0]
    lines = example.replace("\\\n", " ").splitlines()
    typed = [shlex.split(line) for line in lines if line.startswith("    python -m ")]
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
    make_folder, without_us = scripts()
    exec(compile(make_folder, "own_images.md", "exec"), {})
    assert len(list(pathlib.Path("images").glob("*/*.jpg"))) == 120

    (trained, arguments), *others = commands()
    assert trained == "experiments.train"
    monkeypatch.setattr(importlib.import_module(trained), "survive_closed_pipes", lambda: None)
    run(trained, *arguments, *CUT_DOWN)
    assert "on 28 images" in capsys.readouterr().out
    modules = [module.removeprefix("experiments.") for module, _ in others]
    assert modules == ["evaluate", "predict", "export", "predict"]
    for module, arguments in others:
        run(module, *arguments)
    printed = capsys.readouterr().out
    assert printed.count(PICTURE) == 2

    want = predicted(capsys, "runs/mine")
    assert set(want) == {"chelsea", "coffee", "rocket"}
    assert sum(want.values()) == pytest.approx(1)
    assert predicted(capsys, "exports/mine") == pytest.approx(want, abs=1e-5)

    absent = ("lrnet_jax", "pallas_kernels", "experiments", "flax", "orbax", "optax")
    block = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + without_us], capture_output=True, text=True, check=True
    )
    lines = (line.rpartition(" ") for line in done.stdout.splitlines())
    alone = {name: float(probability) for name, _, probability in lines}
    assert alone == pytest.approx(want, abs=1e-5)

"""Runs that are traced, and whose metrics also go elsewhere."""

import json
import os
import pathlib
import re
import signal

import pytest

from experiments.cli.command_line import parse
from experiments.cli.watch_flags import chosen_writers
from experiments.config import ConfigError
from experiments.train import define_flags, train
from tests.experiments.test_interruptions import PowerCutError, before_step, cut
from tests.experiments.tiny_run import assert_same_runs, metrics, tiny
from tests.lrnet_jax.training.test_step_trace import traced

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "watching.md"


class Kept:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.begun, self.records, self.ended = [], [], []

    def start(self, run):
        self.begun.append((run.workdir, run.step, run.config["train"]["batch_size"]))

    def scalars(self, kind, step, values):
        self.records.append({"kind": kind, "step": step, **values})

    def sync(self):
        self.ended.append(f"synced at {self.records[-1]['step']}")

    def close(self):
        self.ended.append("closed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody watched."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny(), workdir)
    return workdir


def test_a_trace_changes_no_number(whole, tmp_path, capsys):
    train(tiny(), tmp_path / "run", profile_steps=range(3, 6))
    assert_same_runs(whole, tmp_path / "run")
    assert traced(tmp_path / "run/profile") == [[3, 4, 5]]
    assert f"trace of steps 3 to 5: {tmp_path}/run/profile; to look" in capsys.readouterr().err


def test_a_trace_is_closed_however_the_run_ends(whole, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(tiny(), workdir, profile_steps=range(2, 8)) is None
    assert traced(workdir / "profile") == [[2, 3]]
    with monkeypatch.context() as patch:
        before_step(patch, 3, cut)  # its sixth
        with pytest.raises(PowerCutError):
            train(tiny(), workdir, profile_steps=range(5, 8))
    printed = capsys.readouterr().err
    assert "trace of steps 2 to 3" in printed
    assert "trace of steps 5 to 6" in printed
    train(tiny(), workdir, profile_steps=range(1, 3))
    assert "step 2 was taken before; nothing is traced" in capsys.readouterr().err
    assert_same_runs(whole, workdir)


def test_steps_that_the_run_does_not_have(tmp_path):
    with pytest.raises(ConfigError, match="ends with step 9, and the run has 8 steps"):
        train(tiny(), tmp_path / "run", profile_steps=range(5, 10))
    assert not (tmp_path / "run").exists()


def test_a_writer_is_told_what_the_file_has(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    first, second = Kept(), Kept()
    with monkeypatch.context() as patch:
        before_step(patch, 7, cut)
        with pytest.raises(PowerCutError):
            train(tiny(), workdir, [first])
    assert first.begun == [(workdir, 0, 8)]
    assert first.ended == ["synced at 4", "closed"]
    train(tiny(), workdir, [second])
    assert second.begun == [(workdir, 4, 8)]
    assert [r["step"] for r in second.records if r["kind"] == "train"] == [5, 6, 7, 8]
    assert [r for r in second.records if r["kind"] == "eval"] == metrics(workdir, "eval")
    assert [r for r in second.records if r["kind"] == "train"] == metrics(workdir)[4:]


WANDB = """
import json, pathlib

class Run:
    def __init__(self, folder):
        self.file = (folder / "wandb.jsonl").open("a")

    def log(self, values, step):
        print(json.dumps({"step": step, **values}), file=self.file)

    def finish(self):
        self.file.close()

def init(*, project, id, name, resume, config, dir):
    assert (project, resume, config["seed"]) == ("lrnet", "allow", 0)
    assert "/" not in id
    return Run(pathlib.Path(dir))
"""


def test_the_example_of_a_writer(tmp_path, monkeypatch):
    """That of the page, with a stand-in for its package, which needs an account."""
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (flag,) = set(re.findall(r"--writer=my_\S+", PAGE.read_text()))
    (tmp_path / "my_writers.py").write_text(text)
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    writers = chosen_writers(parse([flag], define_flags))
    train(tiny(), tmp_path / "run", writers)
    logged = [json.loads(line) for line in (tmp_path / "run/wandb.jsonl").read_text().splitlines()]
    for kind in ("train", "eval"):
        expected = [
            {name if name == "step" else f"{kind}/{name}": value for name, value in record.items()}
            for record in metrics(tmp_path / "run", kind)
        ]
        for record in expected:
            del record[f"{kind}/kind"]
        assert [record for record in logged if f"{kind}/loss" in record] == expected

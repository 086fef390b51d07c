"""A run that is stopped, killed and restarted ends as if nothing had happened."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import train as module
from experiments.run import session
from experiments.train import train
from lrnet_jax.training import checkpoints, workdir_lock
from lrnet_jax.training.workdir_lock import WorkdirInUseError
from tests.experiments.tiny_run import assert_same_runs, metrics, tiny

EVALUATED = {"train.eval_every_epochs": "0.0024", "train.log_every": "5"}  # after steps 3 and 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never interrupted: (workdir, result)."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, train(tiny(**EVALUATED), workdir)


class PowerCutError(Exception):
    """Stands for the end of the process."""


def before_step(monkeypatch, number, act):
    """Calls `act` when step `number` of the next `train` requests its batch."""

    def batches(source, put):
        for step, batch in enumerate(source, start=1):
            if step == number:
                act()
            yield put(batch)

    monkeypatch.setattr(module, "prefetch", lambda *a: contextlib.closing(batches(*a)))


def cut():
    raise PowerCutError


def test_signals_power_cuts_and_evaluations_leave_no_trace(whole, tmp_path, monkeypatch, capsys):
    workdir, config = tmp_path / "run", tiny(**EVALUATED)
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, workdir) is None
    assert checkpoints.find(workdir).folder.name == "2"
    assert "stopped by SIGTERM after step 2 of 8, which is saved" in capsys.readouterr().err
    assert len(metrics(workdir)) == 2

    # This signal comes in the middle of the evaluation after step 3, which is then repeated.
    with monkeypatch.context() as patch:
        evaluate = session.evaluate
        patch.setattr(
            session, "evaluate", lambda *a: (os.kill(os.getpid(), signal.SIGINT), evaluate(*a))[1]
        )
        assert train(config, workdir) is None
    assert checkpoints.find(workdir).folder.name == "3"
    assert metrics(workdir, "eval") == []

    with monkeypatch.context() as patch:
        before_step(patch, 3, cut)  # its sixth; the checkpoint before it is of step 4
        with pytest.raises(PowerCutError):
            train(config, workdir)
    assert checkpoints.find(workdir).folder.name == "4"
    before = checkpoints.find(workdir).metadata["progress"]
    assert before["evaluated"] == 3
    assert before["best_step"] == 3

    # Fields that change nothing of what is computed may change.
    changed = {**EVALUATED, "train.log_every": "2", "train.keep_checkpoints": "2"}
    assert train(tiny(**changed), workdir) == whole[1]
    assert_same_runs(whole[0], workdir)
    after = checkpoints.find(workdir).metadata["progress"]
    assert after["seconds"] > before["seconds"]
    best = max(metrics(workdir, "eval")[:2], key=lambda record: record["top1"])
    assert (after["best_step"], after["best_top1"]) == (best["step"], best["top1"])
    assert best["step"] in checkpoints.steps_in(workdir / checkpoints.FOLDER)


def test_the_record_of_a_saved_step_is_never_lost(tmp_path, monkeypatch):
    """The best evaluation is saved between two reports; the power is cut right after it."""
    rare = {"train.log_every": "100", "train.checkpoint_every": "100"}
    before_step(monkeypatch, 4, cut)
    with pytest.raises(PowerCutError):
        train(tiny(**{**EVALUATED, **rare}), tmp_path / "run")
    assert checkpoints.find(tmp_path / "run").folder.name == "3"
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3]


def test_saves_by_time_and_by_multiples(tmp_path, monkeypatch):
    """The clock causes a save after step 3; the multiples of 5 are kept, and the newest."""
    config = tiny(
        **{"train.keep_every": "5", "train.keep_checkpoints": "1", "train.checkpoint_every": "100"}
    )
    saves = []
    save = session.CheckpointSaver.save

    def saving(self, state, *rest, **more):
        saves.append(int(state.step))
        save(self, state, *rest, **more)

    monkeypatch.setattr(session.CheckpointSaver, "save", saving)
    real = time.monotonic
    jump = []
    monkeypatch.setattr(time, "monotonic", lambda: real() + sum(jump))
    # The wall clock does not matter.
    calendar = time.time
    monkeypatch.setattr(time, "time", lambda: calendar() - 200 * sum(jump))
    before_step(monkeypatch, 3, lambda: jump.append(601))
    train(config, tmp_path / "run")
    assert saves == [3, 5, 8]
    assert checkpoints.steps_in(tmp_path / "run" / checkpoints.FOLDER) == [5, 8]


def test_one_process_at_a_time_locks_a_workdir(tmp_path):
    """The message names the process that holds the lock; the lock ends when that is killed."""
    program = (
        "import pathlib, sys, time; from lrnet_jax.training.workdir_lock import lock_workdir\n"
        "with lock_workdir(pathlib.Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with (
            pytest.raises(WorkdirInUseError, match=f"in use by process {other.pid} on"),
            workdir_lock.lock_workdir(tmp_path, patience=0.2),
        ):
            pass
        other.kill()
        with workdir_lock.lock_workdir(tmp_path):
            pass

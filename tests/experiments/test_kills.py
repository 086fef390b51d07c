"""Runs are killed and resumed. `make chaos` kills twenty times, CHAOS_KILLS=N kills N times."""

import os
import random
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from lrnet_jax.training import checkpoints
from tests.experiments.killable_jobs import Job, pair
from tests.experiments.tiny_run import assert_same_runs, metrics, saved

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("CHAOS_KILLS", "2"))
DEVICES = 2
STEPS = 20 * max(5, KILLS)
# The run is long, so that a kill comes at any moment; saves are frequent, so that many kills come
# during one.
CHANGES = {
    "train.epochs": str(STEPS * 8 / 10_000),
    "train.eval_every_epochs": "0.04",
    "train.checkpoint_every": "3",
    "train.log_every": "7",
    "model.batch_norm_images": "2",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    job = Job(workdir, CHANGES, devices=DEVICES, cache=cache)
    assert job.wait() == 0, job.output()
    return workdir


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_run_killed_again_and_again_ends_as_the_whole_one(whole, cache, tmp_path, number):
    """Kills come at random moments: before, during and after steps, saves and evaluations."""
    workdir, choice = tmp_path / "run", random.Random(int(number))
    torn, at = 0, [0]
    for _ in range(KILLS):
        job = Job(workdir, CHANGES, devices=DEVICES, cache=cache)
        if number == signal.SIGTERM:  # before this line it is not handled; there is nothing to save
            job.until("lrnet_small (")
        # Spread over the run, and at any moment of a step or a save.
        job.until_steps(workdir, at[-1] + choice.randint(0, 2 * STEPS // (KILLS + 1)))
        time.sleep(choice.uniform(0, 0.1))
        job.signal(number)
        code = job.wait()
        torn += any((workdir / checkpoints.FOLDER).glob("*.orbax-checkpoint-tmp"))
        at.append(len(metrics(workdir)))
        if number == signal.SIGTERM and "final:" not in job.output():
            assert code == 0, job.output()
            assert re.search("to resume: .*-m experiments.train", job.output())
    last = Job(workdir, CHANGES, devices=DEVICES, cache=cache)
    assert last.wait() == 0, last.output()
    print(f"{number.name}: {KILLS} times, after steps {at[1:]}; {torn} of them during a save")
    assert_same_runs(whole, workdir)
    assert not list((workdir / checkpoints.FOLDER).glob("*damaged*"))


def close(one, other):
    """Compares runs on different devices, which add the same numbers in another order."""
    for a, b in zip(metrics(one), metrics(other), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)
    a, b = saved(one), saved(other)
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-2, atol=1e-4, err_msg=path)


SHORT = {**CHANGES, "train.epochs": "0.0096", "train.eval_every_epochs": "0"}  # 12 steps


def test_four_devices_then_two_then_one(cache, tmp_path):
    """SIGTERM on 4 devices and on 2, and the end on 1 in parts, is compared with a run on 1."""
    alone = Job(tmp_path / "alone", SHORT, devices=1, cache=cache)
    assert alone.wait() == 0, alone.output()
    workdir = tmp_path / "run"
    for devices in (4, 2):
        job = Job(workdir, SHORT, devices=devices, cache=cache)
        job.until("lrnet_small (")
        job.signal(signal.SIGTERM)
        assert job.wait() == 0, job.output()
        assert "stopped by SIGTERM after step" in job.output()
    last = Job(workdir, {**SHORT, "train.accumulate": "4"}, devices=1, cache=cache)
    assert last.wait() == 0, last.output()
    assert "resumed at step 2" in last.output()
    close(tmp_path / "alone", workdir)


MEDIUM = {**SHORT, "train.epochs": "0.048"}  # 60 steps


def test_two_processes_are_one_and_end_and_start_together(cache, tmp_path):
    """2 x 2 devices, with SIGTERM to one process and kills, are compared with 1 x 4."""
    alone = Job(tmp_path / "alone", MEDIUM, devices=4, cache=cache)
    workdir = tmp_path / "run"
    assert alone.wait() == 0, alone.output()

    jobs = pair(workdir, MEDIUM, devices=2, cache=cache)
    jobs[0].until("step 14/")
    jobs[1].signal(signal.SIGTERM)
    assert [job.wait() for job in jobs] == [0, 0]
    assert "stopped by a signal to another process after step" in jobs[0].output()

    for victim in (1, 0):
        jobs = pair(workdir, MEDIUM, devices=2, cache=cache)
        assert jobs[0].until("first step after")
        jobs[victim].signal(signal.SIGKILL)
        killed = time.monotonic()
        assert jobs[1 - victim].wait(timeout=150) not in (0, None)
        jobs[victim].wait()
        output = jobs[1 - victim].output()
        assert "another task died" in output or "lost the others" in output
        assert "start all of them again with the same command" in output
        print(f"process {victim} killed: the other ended after {time.monotonic() - killed:.1f} s")

    jobs = pair(workdir, MEDIUM, devices=2, cache=cache)
    assert [job.wait() for job in jobs] == [0, 0], jobs[0].output() + jobs[1].output()
    assert metrics(workdir, "eval")[-1]["count"] == 2000
    close(tmp_path / "alone", workdir)


def test_two_processes_under_shard_map(cache, tmp_path):
    """Resumed by shard_map from a start by pmap; compared with one process by pmap."""
    alone = Job(tmp_path / "alone", SHORT, devices=4, cache=cache)
    workdir = tmp_path / "run"
    assert alone.wait() == 0, alone.output()
    other = {**SHORT, "train.parallel": "shard_map"}
    jobs = pair(workdir, SHORT, devices=2, cache=cache)
    jobs[0].until("first step after")
    jobs[0].signal(signal.SIGTERM)
    assert [job.wait() for job in jobs] == [0, 0]
    jobs = pair(workdir, other, devices=2, cache=cache)
    assert [job.wait() for job in jobs] == [0, 0], jobs[0].output() + jobs[1].output()
    assert "resumed at step" in jobs[0].output()
    close(tmp_path / "alone", workdir)


def test_a_disk_that_fills_up_and_is_given_room(cache, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        greedy = {**SHORT, "train.checkpoint_every": "1", "train.keep_checkpoints": "100"}
        job = Job(disk / "run", greedy, devices=DEVICES, cache=cache, log=tmp_path)
        assert job.wait() == 2, job.output()
        last = job.output().splitlines()[-1]
        assert last.startswith("error: ")
        assert "space left" in last
        assert "Traceback" not in job.output()
        steps = checkpoints.steps_in(disk / "run" / checkpoints.FOLDER)
        assert checkpoints.find(disk / "run").metadata["step"] == steps[-1]
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        job = Job(disk / "run", greedy, devices=DEVICES, cache=cache, log=tmp_path)
        assert job.wait() == 0, job.output()
        assert f"resumed at step {steps[-1]} in" in job.output()
    finally:
        subprocess.run(["umount", str(disk)], check=True)

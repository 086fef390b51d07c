"""Runs that start from another run: its weights alone, or its whole state."""

import contextlib
import dataclasses
import shlex
import shutil

import jax
import numpy as np
import pytest

from experiments import train as module
from experiments.cli import command_line
from experiments.config import ConfigError
from experiments.run import origin
from experiments.run.artifact import export
from experiments.run.assemble import assemble
from experiments.run.export_request import ExportRequest
from experiments.run.inputs import open_data
from experiments.run.origin import forked, start_from_origin
from experiments.run.overrides import override_all
from experiments.train import train
from lrnet_jax.data.in_memory import InMemoryDataset
from lrnet_jax.training import checkpoints
from lrnet_jax.training.checkpoints import CheckpointError, flatten
from tests.experiments.tiny_run import assert_same_runs, metrics, saved, tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run with checkpoints of steps 4 and 8."""
    workdir = tmp_path_factory.mktemp("runs") / "source"
    train(tiny(), workdir)
    return workdir


def first_state(config, workdir, dataset=None):
    """The arrays of a run before its first step, {"params/..": array}, and what it says of them."""
    dataset = dataset or open_data(config)
    run = start_from_origin(config, workdir, dataset, assemble(config, dataset))
    host = jax.device_get(run.state)
    trees = {"params": host.params, "batch_stats": host.batch_stats, "ema": host.ema}
    return flatten(trees), host, "\n".join(run.origin)


def three_classes(names=None):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), dtype=np.uint8)
    labels = np.arange(9, dtype=np.int32) % 3
    return InMemoryDataset(
        "three", pixels, labels, pixels, labels, 3, (127.0,) * 3, (60.0,) * 3, names
    )


def from_source(path):
    """Where the averaged weights of the source are among `saved`, for a path of the new state."""
    kind, _, rest = path.partition("/")
    return f"ema/{rest}" if kind == "ema" else f"ema/{path}"


def test_init_takes_the_averaged_weights_and_nothing_else(source, tmp_path):
    config = tiny(**{"train.init_from": str(source)})
    found, state, printed = first_state(config, tmp_path)
    stored = saved(source)
    for path, array in found.items():
        np.testing.assert_array_equal(array, stored[from_source(path)], err_msg=path)
    assert state.step == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert "step 8, averaged: took 33 arrays of stem, stages/0, head" in printed
    assert "left" not in printed


@pytest.mark.parametrize("kind", ["fewer", "other names"])
def test_a_head_of_other_classes_is_left(source, tmp_path, kind):
    """Ten classes of other names are other classes, too."""
    config = tiny(**{"train.init_from": str(source / "checkpoints" / "4"), "train.epochs": "9"})
    fresh = jax.device_get(assemble(config, three_classes()).state.params["head"])
    dataset = three_classes()
    if kind == "other names":
        dataset = dataclasses.replace(open_data(config), class_names=tuple("abcdefghij"))
        fresh = jax.device_get(assemble(config, dataset).state.params["head"])
    found, _, printed = first_state(config, tmp_path, dataset)
    shutil.copytree(source, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints" / "8")
    stored = saved(tmp_path / "copy")
    for path, array in found.items():
        want = stored[from_source(path)] if "/head/" not in path else fresh[path.split("/")[-1]]
        np.testing.assert_array_equal(array, want, err_msg=path)
    count = 3 if kind == "fewer" else 10
    assert f"left its head of 10 classes; the head of {count} classes is new" in printed
    assert "step 4, averaged: took 31 arrays of stem, stages/0\n" in printed


def test_init_from_an_export(source, tmp_path):
    """An export has tables instead of prior networks, which the error explains how to have."""
    export(ExportRequest(source, tmp_path / "export"), implementation="xla")
    config = tiny(**{"train.init_from": str(tmp_path / "export")})
    with pytest.raises(
        ConfigError, match=r"of another network: .*; use --config.model.prior=table"
    ):
        first_state(config, tmp_path)
    config = override_all(config, [("model.prior", "table")])
    found, _, printed = first_state(config, tmp_path)
    np.testing.assert_array_equal(
        found["params/head/kernel"], saved(source)["ema/params/head/kernel"]
    )
    assert "took" in printed


def test_init_into_another_kernel_says_so(source, tmp_path):
    """Prior networks have no size of a kernel, so the arrays fit."""
    config = tiny(**{"train.init_from": str(source), "model.kernel_size": "5"})
    _, _, printed = first_state(config, tmp_path)
    assert "the networks differ: kernel_size: 3 -> 5" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.width": "8"},
            r"its batch_stats/.* is float32\[4\], and float32\[8\] here; use .*model.width=4",
        ),
        ({"network": "resnet_small"}, "of another network: .*; use --config.network=lrnet_small"),
    ],
)
def test_init_from_another_network_writes_nothing(source, tmp_path, changes, message):
    config = tiny(**{"train.init_from": str(source), **changes})
    with pytest.raises(ConfigError, match=message) as raised:
        train(config, tmp_path / "run")
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="nowhere is not a directory"):
        train(tiny(**{"train.init_from": "nowhere"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_of_another_version(source, tmp_path, monkeypatch):
    config = tiny(**{"train.init_from": str(source)})
    read = origin.read_weights

    def newer(path):
        weights = read(path)
        variant = {**weights.metadata["variant"], "wings": 2}
        return weights._replace(metadata={**weights.metadata, "variant": variant})

    monkeypatch.setattr(origin, "read_weights", newer)
    with pytest.raises(ConfigError, match=r"this version cannot build: .*'wings'"):
        first_state(config, tmp_path)


def test_a_fork_that_changes_nothing_ends_as_its_origin(source, tmp_path):
    workdir = tmp_path / "fork"
    config = forked(str(source / "checkpoints" / "4"))
    assert train(config, workdir) is not None
    assert [record["step"] for record in metrics(workdir)] == [5, 6, 7, 8]
    assert metrics(workdir) == metrics(source)[4:]
    one, other = saved(source), saved(workdir)
    assert one.keys() == other.keys()
    for path in one:
        assert one[path].tobytes() == other[path].tobytes(), path


def test_a_run_is_prolonged_and_resumes_without_its_origin(source, tmp_path, monkeypatch):
    first = tmp_path / "first"
    shutil.copytree(source, first)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = override_all(forked(str(first)), [("train.epochs", "0.0128")])
    result = train(config, whole)
    assert result.step == 16
    rates = [record["learning_rate"] for record in metrics(whole)]
    uninterrupted = tiny(**{"train.epochs": "0.0128"})
    schedule = jax.jit(schedule_of(uninterrupted))
    np.testing.assert_allclose(rates, [schedule(step) for step in range(8, 16)], rtol=1e-6)

    class PowerCutError(Exception):
        pass

    def cut(batches, put):
        for step, batch in enumerate(batches, start=9):
            if step == 14:
                raise PowerCutError
            yield put(batch)

    with monkeypatch.context() as patch:
        patch.setattr(module, "prefetch", lambda *a: contextlib.closing(cut(*a)))
        with pytest.raises(PowerCutError):
            train(config, stopped)
    assert checkpoints.find(stopped).folder.name == "12"
    shutil.rmtree(first)
    options = command_line.parse(
        [f"--fork_from={first}", f"--workdir={stopped}", "--config.train.epochs=0.0128"],
        module.define_flags,
    )
    module.main(options)
    assert_same_runs(whole, stopped)


def schedule_of(config):
    from experiments.run.assemble import _schedule

    steps = 10000 / config.train.batch_size
    return _schedule(config, steps, round(config.train.epochs * steps))


def test_a_place_in_the_data_is_a_number_of_images(source, tmp_path):
    changes = [("train.batch_size", "4"), ("train.epochs", "0.02"), ("optim.clip_norm", "1")]
    config = override_all(forked(str(source)), changes)
    found, state, printed = first_state(config, tmp_path)
    assert state.step == 16
    stored = saved(source)
    counts = [leaf for path, leaf in flatten(state.opt_state).items() if path.endswith("count")]
    assert counts == [16]
    for path, leaf in flatten(state.opt_state).items():
        if "trace" in path:
            inner = path[path.index("trace") :]
            (want,) = [array for name, array in stored.items() if name.endswith(inner)]
            np.testing.assert_array_equal(leaf, want)
    for path, array in found.items():
        item = path if path.startswith("ema") else f"model/{path}"
        np.testing.assert_array_equal(array, stored[item])
    assert "after step 8, which is step 16 here; changed: optim.clip_norm: None -> 1.0" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "is at step 8, and train.epochs 0.0064 are 8 steps; use more, such as --config.train"),
        ({"optim.name": "adamw"}, r"does not fit \(optim.name: sgd -> adamw\): it has no mu/head/"),
        ({"network": "resnet_small"}, "--fork_from: .* another network: .*; use --config.network="),
        ({"train.init_from": "runs/a"}, "exclude each other; leave one out"),
    ],
)
def test_what_cannot_be_forked_is_answered_in_one_line(source, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as raised:
        train(override_all(forked(str(source)), list(changes.items())), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_other_classes_are_not_forked(source, tmp_path):
    config = override_all(forked(str(source)), [("train.epochs", "20")])
    with pytest.raises(ConfigError, match="has other classes; start with its weights alone"):
        first_state(config, tmp_path, three_classes())


def test_the_error_of_another_configuration_says_how_to_fork(source):
    longer = tiny(**{"train.epochs": "0.0128", "optim.boundaries": "1,2"})
    with pytest.raises(ConfigError) as raised:
        train(longer, source)
    message = str(raised.value)
    _, _, command = message.partition("to continue it with this one: ")
    arguments = shlex.split(command.removesuffix(" --workdir=NEW"))
    assert arguments[1:3] == ["-m", "experiments.train"]
    options = command_line.parse([*arguments[3:], "--workdir=new"], module.define_flags)
    assert module._forked(options) == dataclasses.replace(
        longer, train=dataclasses.replace(longer.train, fork_from=str(source))
    )
    with pytest.raises(ConfigError, match=r"to resume$"):
        train(tiny(**{"model.width": "8"}), source)


def test_a_fork_needs_a_workdir_of_its_own():
    for arguments, message in (
        (["--fork_from=a"], "--workdir is missing; for example --workdir=a_fork"),
        (["--fork_from=a", "--workdir=./a"], "--fork_from=a is --workdir itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            module._forked(command_line.parse(arguments, module.define_flags))

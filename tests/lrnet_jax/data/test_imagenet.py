"""A miniature imagenet2012 as TFDS prepares it: stream, start-up checks, bad images, workers."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lrnet_jax.data import BadImageError, order
from tests.lrnet_jax.data import miniature
from tests.lrnet_jax.data.miniature import SIZE, open_miniature
from tests.lrnet_jax.data.streams import assert_same, take


@pytest.fixture(params=miniature.FORMATS)
def dataset(prepared_dir, request):
    return open_miniature(prepared_dir / request.param)


def test_description(dataset):
    assert (dataset.name, dataset.num_classes, dataset.image_size) == ("imagenet2012", 1000, SIZE)
    assert (dataset.num_train, dataset.num_eval) == (miniature.TRAIN, miniature.VALIDATION)
    assert dataset.class_names[:2] == ("n01440764", "n01443537")
    np.testing.assert_allclose(dataset.mean, (123.675, 116.28, 103.53))
    np.testing.assert_allclose(dataset.std, (58.395, 57.12, 57.375))


def test_examples_are_those_of_the_tars(dataset):
    """Bytes and labels against the images that the tars were made of."""
    originals = {k: v for files in miniature.train_images().values() for k, v in files.items()}
    found = [dataset.train.example(i) for i in range(dataset.num_train)]
    assert {example.file_name for example in found} == set(originals)
    for index, example in enumerate(found):
        assert dataset.class_names[example.label] == example.file_name.partition("_")[0]
        if example.file_name not in (miniature.CMYK, miniature.PNG):  # TFDS converts these
            assert example.encoded == originals[example.file_name]
        assert dataset.train.decode(index, example).mode == "RGB"
    originals = miniature.validation_images()
    for index in range(dataset.num_eval):
        example = dataset.evaluation.example(index)
        assert example.encoded == originals.pop(example.file_name)
    assert not originals


def test_both_formats_give_the_same_stream(prepared_dir):
    array_record, tfrecord = (open_miniature(prepared_dir / name) for name in miniature.FORMATS)
    assert_same(*(take(d.train_batches(4, seed=1), 6) for d in (array_record, tfrecord)))
    assert_same(*(list(d.eval_batches(4)) for d in (array_record, tfrecord)))


def test_train_batches(dataset):
    batches = take(dataset.train_batches(4, seed=1), 9)  # two epochs of 18
    assert {name: (x.shape, x.dtype.name) for name, x in batches[0].items()} == {
        "image": ((4, SIZE, SIZE, 3), "uint8"),
        "label": ((4,), "int32"),
        "index": ((4,), "int32"),
    }
    assert batches[5]["index"].tolist() == [0, 1, 2, 3]
    _, examples = order.training_examples(np.arange(36), 18, seed=1)
    labels = [dataset.train.example(i).label for i in examples]
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == labels
    # The crop of an image is drawn anew in each epoch.
    images = np.concatenate([batch["image"] for batch in batches])
    crops = {int(i): images[np.flatnonzero(examples == i)] for i in range(18)}
    assert all((first != second).any() for first, second in crops.values())


def test_a_crop_depends_on_seed_epoch_and_image_alone(dataset):
    """The same image in another batch and row, or loaded by another process."""
    one = take(dataset.train_batches(6, seed=2), 3)
    other = take(dataset.train_batches(9, seed=2), 2)
    images = [np.concatenate([batch["image"] for batch in batches]) for batches in (one, other)]
    np.testing.assert_array_equal(*images)
    parts = [
        take(dataset.train_batches(6, seed=2, process_index=i, process_count=3), 3)
        for i in range(3)
    ]
    for step, want in enumerate(one):
        for name in want:
            got = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(got, want[name])


def test_resume_is_exact(dataset):
    whole = take(dataset.train_batches(4, seed=1), 9)
    assert_same(take(dataset.train_batches(4, seed=1, start_step=5), 4), whole[5:])


def test_evaluation_sees_every_image_once(dataset):
    batches = list(dataset.eval_batches(4))
    assert len(batches) == 3
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.tolist() == [True] * 10 + [False] * 2
    labels = [dataset.evaluation.example(i).label for i in range(10)]
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == [*labels, 0, 0]
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(12))
    assert not batches[2]["image"][2:].any()
    assert all(batch["image"].std() > 10 for batch in batches)
    parts = [list(dataset.eval_batches(4, process_index=i, process_count=2)) for i in range(2)]
    for step, want in enumerate(batches):
        for name in want:
            got = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(got, want[name])


def test_workers_do_not_change_the_stream(prepared_dir):
    dataset = open_miniature(prepared_dir / "tfrecord")
    workers = dataclasses.replace(dataset, num_workers=2)
    want = take(dataset.train_batches(4, seed=1, start_step=2), 5)
    assert_same(take(workers.train_batches(4, seed=1, start_step=2), 5), want)


def damage(folder, split, file_name):
    """Overwrites the start of an image in a TFRecord shard; the record keeps its length."""
    (shard,) = (
        path
        for path in folder.glob(f"imagenet2012-{split}.*")
        if file_name.encode() in path.read_bytes()
    )
    images = miniature.validation_images()
    images |= {k: v for files in miniature.train_images().values() for k, v in files.items()}
    data = shard.read_bytes()
    at = data.index(images[file_name])
    shard.write_bytes(data[:at] + b"no image" + data[at + 8 :])
    return shard


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_image_is_named(copy, num_workers):
    folder = copy("tfrecord")
    shard = damage(folder, "validation", "ILSVRC2012_val_00000003.JPEG")
    dataset = open_miniature(folder.parents[1], num_workers=num_workers, tolerate_bad_images=9)
    with pytest.raises(
        BadImageError,
        match=rf"image \d of split validation, record \d of {shard}: .* fails its checksum",
    ):
        list(dataset.eval_batches(4))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(lambda jpeg: b"ha", "cannot identify"), (lambda jpeg: jpeg[:-200], ".*truncated")],
)
def test_an_image_that_pillow_cannot_read_is_named(prepared_dir, monkeypatch, spoil, reason):
    dataset = open_miniature(prepared_dir / "array_record")
    victim = dataset.train.example(11)
    spoiled = victim._replace(encoded=spoil(victim.encoded))
    monkeypatch.setattr(type(dataset.train), "example", lambda *_: spoiled)
    with pytest.raises(
        BadImageError,
        match=rf"image 11 \({victim.file_name}\) of split train, record 2 of .*-00001-of-00002: "
        f"{reason}",
    ):
        dataset.train.decode(11, dataset.train.example(11))


def test_an_array_record_that_is_damaged_is_named(copy):
    folder = copy("array_record")
    shard = folder / "imagenet2012-validation.array_record-00001-of-00002"
    data = bytearray(shard.read_bytes())
    assert any(data[3000:3010]), "within an image, compressed"
    data[3000] ^= 0x10
    shard.write_bytes(data)
    dataset = open_miniature(folder.parents[1])
    with pytest.raises(BadImageError, match=rf"of split validation, record \d of {shard}"):
        list(dataset.eval_batches(4))


def test_training_may_tolerate_bad_images(copy, caplog):
    folder = copy("tfrecord")
    clean = take(open_miniature(folder.parents[1]).train_batches(6, seed=0), 6)
    shard = damage(folder, "train", "n01440764_2.JPEG")
    damage(folder, "train", "n02105855_3.JPEG")
    dataset = open_miniature(folder.parents[1], tolerate_bad_images=2)
    batches = take(dataset.train_batches(6, seed=0), 6)
    images, before = (np.stack([batch["image"] for batch in part]) for part in (batches, clean))
    assert (images != before).any((2, 3, 4)).sum() == 4  # two images, two epochs
    # A command that ran before may have made the log more detailed.
    messages = [m for m in caplog.messages if m.startswith("replaced bad image, ")]
    assert len(messages) == 2, "each bad image is told once"
    assert messages[0].startswith("replaced bad image, 1 of 2 tolerated: image ")
    assert any(str(shard) in message for message in messages)
    assert_same(take(dataset.train_batches(6, seed=0, start_step=3), 3), batches[3:])

    strict = dataclasses.replace(dataset, tolerate_bad_images=0)
    with pytest.raises(BadImageError, match="of split train, record"):
        take(strict.train_batches(6, seed=0), 6)
    one = dataclasses.replace(dataset, tolerate_bad_images=1)
    with pytest.raises(BadImageError, match="2 bad images, tolerate_bad_images is 1; the last: im"):
        take(one.train_batches(6, seed=0), 6)


@pytest.mark.parametrize(
    ("option", "least"), [("image_size", 1), ("num_workers", 0), ("tolerate_bad_images", 0)]
)
def test_options_are_checked(prepared_dir, option, least):
    with pytest.raises(ValueError, match=f"{option} must be at least {least}, got -1"):
        open_miniature(prepared_dir / "tfrecord", **{option: -1})


def test_errors_come_at_the_call(dataset):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        dataset.train_batches(0, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        dataset.eval_batches(0)
    with pytest.raises(ValueError, match="start_step must be at least 0, got -1"):
        dataset.train_batches(1, seed=0, start_step=-1)


WITH_WORKERS = """
import multiprocessing, signal, sys, time
from grain._src.python.ipc import shared_memory_array
from lrnet_jax.data import imagenet

if __name__ == "__main__":
    # Shared memory is given back so slowly that some is left behind if nobody waits for it.
    give_back = shared_memory_array._del_shm
    shared_memory_array._del_shm = lambda *a, **k: (time.sleep(0.05), give_back(*a, **k))
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    counts = {"train": 18, "validation": 10}
    dataset = imagenet.open_prepared(
        "imagenet2012", data_dir=sys.argv[1], num_workers=1, expected_counts=counts)
    batches = dataset.train_batches(4, seed=0)
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    while not told:
        next(batches)
    for _ in range(20):
        last = next(batches)
    batches.close()
    assert len(list(dataset.eval_batches(4))) == 3
    print("finished")
"""


def runs(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_their_parent(prepared_dir, tmp_path, end):
    """SIGTERM to all of them: the parent finishes its work first. SIGKILL: it cannot tidy up."""
    script = tmp_path / "with_workers.py"
    script.write_text(WITH_WORKERS)
    paths = [str(pathlib.Path.cwd()), os.environ.get("PYTHONPATH", "")]
    parent = subprocess.Popen(
        [sys.executable, script, prepared_dir / "tfrecord"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )
    with parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 1
        assert all(map(runs, workers))
        if end == "SIGTERM":
            os.killpg(parent.pid, signal.SIGTERM)
            # Nothing in the second: Python would tell of shared memory that was left behind.
            assert parent.communicate(timeout=30) == ("finished\n", "")
            assert parent.returncode == 0
        else:
            parent.kill()
    limit = time.monotonic() + 10
    while any(map(runs, workers)):
        assert time.monotonic() < limit, "workers outlive their parent"
        time.sleep(0.05)


def test_importing_the_package_imports_no_reader():
    code = "import sys, lrnet_jax.data; print({'grain', 'tensorflow_datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_tensorflow_is_never_imported(prepared_dir):
    code = f"""
import sys
from lrnet_jax.data import imagenet
data = imagenet.open_prepared("imagenet2012", data_dir={str(prepared_dir / "tfrecord")!r},
    num_workers=0, expected_counts={miniature.EXPECTED})
next(data.eval_batches(2))
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Random access to record files, and what is said of damaged ones."""

import os
import pathlib
import pickle
import struct

import pytest
from array_record.python import array_record_module
from tensorboardX import crc32c

from lrnet_jax.data import records
from lrnet_jax.data.records import DamagedDatasetError, open_records

CONTENTS = ((b"alpha", b"", b"x" * 3000), (b"beta",), (), (b"gamma", b"delta"))
LENGTHS = [len(shard) for shard in CONTENTS]
FLAT = [record for shard in CONTENTS for record in shard]


def masked(data):
    """The mask of TFRecord over tensorboardX's CRC-32C."""
    crc = crc32c.crc32c(data)
    return ((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF


def tfrecords(contents):
    packed = b""
    for data in contents:
        length = struct.pack("<Q", len(data))
        packed += length + struct.pack("<I", masked(length)) + data
        packed += struct.pack("<I", masked(data))
    return packed


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Writes the shards in a format and returns their paths; the index cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(file_format):
        paths = [str(tmp_path / f"{i}.{file_format}") for i in range(len(CONTENTS))]
        for path, contents in zip(paths, CONTENTS, strict=True):
            if file_format == "tfrecord":
                pathlib.Path(path).write_bytes(tfrecords(contents))
            else:
                writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
                for data in contents:
                    writer.write(data)
                writer.close()
        return paths

    return write


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_every_record_in_any_order(shards, file_format):
    paths = shards(file_format)
    found = open_records(paths, LENGTHS, file_format)
    assert len(found) == len(FLAT)
    for index in (5, 0, 3, 1, 4, 2, 0):
        assert found[index] == FLAT[index]
    assert [found.locate(i) for i in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (3, 0), (3, 1)]
    for index in (-1, 6):
        with pytest.raises(IndexError, match=rf"index must be in \[0, 6\), got {index}"):
            found[index]
    assert pickle.loads(pickle.dumps(found))[5] == b"delta"


def test_the_index_is_kept_until_a_shard_changes(shards, monkeypatch):
    paths = shards("tfrecord")
    walked = []
    walk = records._walk_tfrecords
    monkeypatch.setattr(records, "_walk_tfrecords", lambda path: walked.append(path) or walk(path))
    open_records(paths, LENGTHS, "tfrecord")
    assert len(walked) == 4
    assert open_records(paths, LENGTHS, "tfrecord")[5] == b"delta"
    assert len(walked) == 4
    pathlib.Path(paths[3]).write_bytes(tfrecords((b"new", b"records")))
    assert open_records(paths, LENGTHS, "tfrecord")[5] == b"records"
    assert len(walked) == 8


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_missing_shards(shards, file_format):
    paths = shards(file_format)
    pathlib.Path(paths[1]).unlink()
    pathlib.Path(paths[3]).unlink()
    with pytest.raises(
        DamagedDatasetError, match=f"2 of 4 shards are missing, the first {paths[1]}"
    ):
        open_records(paths, LENGTHS, file_format)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_wrong_number_of_records(shards, file_format):
    paths = shards(file_format)
    with pytest.raises(DamagedDatasetError, match=f"{paths[1]} has 1 records, .* says 2"):
        open_records(paths, [3, 2, 0, 2], file_format)


@pytest.mark.parametrize("keep", [1, 10, 14, 40, -1])
def test_a_cut_tfrecord_shard(shards, keep):
    paths = shards("tfrecord")
    data = pathlib.Path(paths[0]).read_bytes()
    pathlib.Path(paths[0]).write_bytes(data[:keep])
    with pytest.raises(DamagedDatasetError, match=paths[0]):
        open_records(paths, LENGTHS, "tfrecord")


def test_a_cut_array_record_shard(shards):
    paths = shards("array_record")
    data = pathlib.Path(paths[0]).read_bytes()
    for keep in (0, 100, len(data) // 2, len(data) - 1):
        pathlib.Path(paths[0]).write_bytes(data[:keep])
        with pytest.raises(DamagedDatasetError, match=f"{paths[0]} is not a whole ArrayRecord"):
            open_records(paths, LENGTHS, "array_record")


def flip_byte(path, at):
    with pathlib.Path(path).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_a_damaged_tfrecord_header(shards):
    paths = shards("tfrecord")
    flip_byte(paths[0], 12 + 5 + 4)  # the length of the second record
    with pytest.raises(
        DamagedDatasetError,
        match=f"{paths[0]}: wrong checksum in the header of record 1 at byte 21",
    ):
        open_records(paths, LENGTHS, "tfrecord")


def test_damaged_data_is_seen_when_read(shards):
    paths = shards("tfrecord")
    flip_byte(paths[0], 12 + 2)
    found = open_records(paths, LENGTHS, "tfrecord")
    assert found[2] == FLAT[2]
    with pytest.raises(ValueError, match="record at byte 0 fails its checksum"):
        found[0]


def test_a_shard_cut_after_opening(shards):
    paths = shards("tfrecord")
    found = open_records(paths, LENGTHS, "tfrecord")
    os.truncate(paths[3], 14)
    with pytest.raises(ValueError, match="record at byte 0 is cut short"):
        found[4]
    with pytest.raises(ValueError, match="only 0 of 12 bytes"):
        found[5]

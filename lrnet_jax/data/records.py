"""Random access to the records of sharded files, TFRecord or ArrayRecord, without TensorFlow.

ArrayRecord files carry an index and checksums; the library reads them. TFRecord files have neither
index nor end mark. A record is

    length (8 bytes)  checksum of length (4)  data (length)  checksum of data (4)

little-endian, checksums masked CRC-32C, so the place of a record follows from all lengths before
it. The lengths are walked once per data set and the places kept in the user's cache.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
import struct
import tempfile
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

FileFormat = Literal["array_record", "tfrecord"]
HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
logger = logging.getLogger(__name__)
# Opening shards waits on the disk or the network, not on the CPU.
OPENING_THREADS = 32

Result = TypeVar("Result")


class DamagedDatasetError(RuntimeError):
    """Files of a prepared data set are missing, cut short or contradict one another."""


class Place(NamedTuple):
    """The place of a record."""

    shard: int
    position: int  # within the shard


class Reader(Protocol):
    """Reads one record of a shard."""

    def read(self, place: Place) -> bytes:
        """The record's bytes; raises where they are damaged."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of all shards, one after the other. Can be sent to other processes."""

    paths: tuple[str, ...]
    first: np.ndarray  # (shards + 1,) int64: number of each shard's first record, then the total
    reader: Reader

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: int) -> bytes:
        return self.reader.read(self.locate(index))

    def locate(self, index: int) -> Place:
        """The shard and the position in it of record `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        return Place(shard, index - int(self.first[shard]))


def open_records(paths: Sequence[str], lengths: Sequence[int], file_format: FileFormat) -> Records:
    """Opens shards after checking that each exists, is complete and has all its records.

    Args:
      paths: the shards in order.
      lengths: records of each.
      file_format: of all of them.

    Raises:
      DamagedDatasetError: naming the shards at fault.
    """
    missing = [path for path in paths if not pathlib.Path(path).is_file()]
    if missing:
        raise DamagedDatasetError(
            f"{len(missing)} of {len(paths)} shards are missing, the first {missing[0]}; "
            "copy them again, or prepare the data set again"
        )
    reader: Reader
    if file_format == "array_record":
        found = _in_threads(_count_array_records, paths)
        _compare_lengths(paths, lengths, found)
        reader = _ArrayRecordReader(tuple(paths), tuple(lengths))
    else:
        reader = _TFRecordReader(tuple(paths), _tfrecord_index(paths, lengths))
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Records(tuple(paths), first, reader)


def _compare_lengths(paths: Sequence[str], lengths: Sequence[int], found: Sequence[int]) -> None:
    for path, want, got in zip(paths, lengths, found, strict=True):
        if got != want:
            raise DamagedDatasetError(
                f"{path} has {got} records, dataset_info.json says {want}; copy it again"
            )


def _in_threads(function: Callable[[str], Result], paths: Sequence[str]) -> list[Result]:
    with concurrent.futures.ThreadPoolExecutor(OPENING_THREADS) as pool:
        return list(pool.map(function, paths))


def _count_array_records(path: str) -> int:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(path)
        count = reader.num_records()
        reader.close()
    except Exception as error:  # the library raises bare RuntimeErrors without the path
        raise DamagedDatasetError(f"{path} is not a whole ArrayRecord file: {error}") from error
    return int(count)


class _ArrayRecordReader:
    """The reader of the library; every process opens shards when it needs them."""

    def __init__(self, paths: tuple[str, ...], lengths: tuple[int, ...]) -> None:
        from array_record.python import array_record_data_source

        # The lengths in brackets spare opening every shard once more.
        self._source = array_record_data_source.ArrayRecordDataSource(
            [f"{path}[0:{length}]" for path, length in zip(paths, lengths, strict=True)]
        )
        self._first = [0, *itertools.accumulate(lengths)]

    def read(self, place: Place) -> bytes:
        return self._source[self._first[place.shard] + place.position]


class _TFRecordReader:
    """Reads a TFRecord at a known offset and checks both checksums."""

    def __init__(self, paths: tuple[str, ...], offsets: tuple[np.ndarray, ...]) -> None:
        self._paths = paths
        self._offsets = offsets

    def read(self, place: Place) -> bytes:
        offset = int(self._offsets[place.shard][place.position])
        # Opened each time: a thousand shards in each of many workers would exhaust the
        # descriptors, and opening costs little beside decoding.
        with pathlib.Path(self._paths[place.shard]).open("rb", buffering=0) as file:
            length = _record_length(os.pread(file.fileno(), HEADER.size, offset))
            data = os.pread(file.fileno(), length + FOOTER.size, offset + HEADER.size)
        if len(data) != length + FOOTER.size:
            raise ValueError(f"record at byte {offset} is cut short")
        record = data[:length]
        if _masked_crc(record) != FOOTER.unpack(data[length:])[0]:
            raise ValueError(f"record at byte {offset} fails its checksum")
        return record


def _tfrecord_index(paths: Sequence[str], lengths: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Offsets of the records of each shard, (length,) int64 each, from the cache or by a walk."""
    ends = np.cumsum(lengths)[:-1]
    cache = _cache_file(paths)
    if cache.exists():
        return tuple(np.split(np.load(cache), ends))
    logger.info("indexing %d TFRecord shards, once; this reads every record's header", len(paths))
    offsets = _in_threads(_walk_tfrecords, paths)
    _compare_lengths(paths, lengths, [len(shard) for shard in offsets])
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".npy", delete=False) as file:
        np.save(file, np.concatenate(offsets))
    pathlib.Path(file.name).replace(cache)  # at once, so that no process sees half a file
    return tuple(offsets)


def _cache_file(paths: Sequence[str]) -> pathlib.Path:
    """A name that changes when any shard does."""
    digest = hashlib.sha256()
    for path in paths:
        status = pathlib.Path(path).stat()
        place = os.path.realpath(path)
        digest.update(f"{place}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return home / "lrnet_jax" / f"tfrecord-index-{digest.hexdigest()[:24]}.npy"


def _walk_tfrecords(path: str) -> np.ndarray:
    offsets: list[int] = []
    with pathlib.Path(path).open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            try:
                length = _record_length(os.pread(file.fileno(), HEADER.size, offset))
            except ValueError as error:
                raise DamagedDatasetError(
                    f"{path}: {error} in the header of record {len(offsets)} at byte {offset}; "
                    "copy it again"
                ) from error
            offsets.append(offset)
            offset += HEADER.size + length + FOOTER.size
    if offset != size:
        raise DamagedDatasetError(
            f"{path} is cut short: {size} bytes, record {len(offsets) - 1} ends at {offset}; "
            "copy it again"
        )
    return np.array(offsets, np.int64)


def tfrecord(data: bytes) -> bytes:
    """The bytes of one record in a TFRecord file."""
    length = len(data).to_bytes(8, "little")
    return length + FOOTER.pack(_masked_crc(length)) + data + FOOTER.pack(_masked_crc(data))


def _record_length(header: bytes) -> int:
    if len(header) != HEADER.size:
        raise ValueError(f"only {len(header)} of {HEADER.size} bytes")
    length, checksum = HEADER.unpack(header)
    if _masked_crc(header[:8]) != checksum:
        raise ValueError("wrong checksum")
    return int(length)


def _masked_crc(data: bytes) -> int:
    import google_crc32c  # only TFRecord needs it

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

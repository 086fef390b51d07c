"""Files of weights: what is read, without running code, and what is refused."""

import pickle
import sys
import types

import ml_dtypes
import numpy as np
import pytest

from lrnet_jax.foreign.files import read_arrays, write_safetensors
from lrnet_jax.training.checkpoints import CheckpointError

ARRAYS = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.ones(2)}


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code in a file was run",))


def same(found, arrays=ARRAYS):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    narrow = {"w": np.array([1.5, -2.0], ml_dtypes.bfloat16)}
    write_safetensors(path, {**ARRAYS, **narrow}, {"lrnet_jax": "{}"})
    found, texts = read_arrays(path)
    same(found, {**ARRAYS, **narrow})
    assert texts == {"format": "pt", "lrnet_jax": "{}"}


def test_npz_and_the_prefix_of_parallel_training(tmp_path):
    np.savez(tmp_path / "a.npz", **{f"module.{name}": array for name, array in ARRAYS.items()})
    found, texts = read_arrays(tmp_path / "a.npz")
    same(found)
    assert texts == {}


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"epoch": 3, "state_dict": d}])
def test_pth(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    state["half"] = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    torch.save(wrap(state), tmp_path / "a.pth")
    same(read_arrays(tmp_path / "a.pth")[0], {**ARRAYS, "half": np.array([1.5, -2.0])})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", "without running code in it: .*; save one with torch.save"),
        (pickle.dumps(Trap()), "without running code in it: UnpicklingError"),
        ([1, 2], "is no state dict: it holds a list; save one with torch.save"),
        ({}, "is no state dict: it holds an empty dict"),
        ({"state_dict": {"lr": 0.1}}, "is no state dict: 'lr' is a float and no tensor"),
    ],
)
def test_a_pth_that_is_no_state_dict(tmp_path, content, message):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_arrays(path)
    assert "\n" not in str(raised.value)


def test_what_torch_returns_is_checked_where_it_is_not_installed(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        CheckpointError, match=r"a\.pth needs torch to be read; .* -m pip install torch"
    ):
        read_arrays(path)
    asked = {}

    def load(path, **options):
        asked.update(options)
        return {"model": [1.0]}

    torch = types.SimpleNamespace(load=load, Tensor=np.ndarray)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(CheckpointError, match="'model' is a list and no tensor"):
        read_arrays(path)
    assert asked == {"map_location": "cpu", "weights_only": True}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"hello", "a.safetensors cannot be read as safetensors: "),
        ("a.npz", b"hello", "a.npz cannot be read as npz: "),
        ("a.h5", b"", r"in a file .safetensors, .npz, .pth, .pt, .bin; got a.h5"),
        ("a.npz", None, "a.npz is not a file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_arrays(path)
    assert "\n" not in str(raised.value)


def test_npz_with_objects_or_without_names(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([Trap()], object))
    with pytest.raises(CheckpointError, match="cannot be read as npz: ValueError: Object arrays"):
        read_arrays(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.ones(2))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(CheckpointError, match="a single array without a name"):
        read_arrays(tmp_path / "b.npz")

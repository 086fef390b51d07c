"""Weights of other libraries: the same logits and maps as theirs, every array used once."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

import lrnet_jax
from lrnet_jax.foreign.convert import to_arrays, to_tree
from lrnet_jax.foreign.names import own_shapes, tensors
from lrnet_jax.functional import merge, split
from lrnet_jax.training.checkpoints import CheckpointError, flatten
from tests.lrnet_jax.foreign import torch_golden


@functools.cache
def golden():
    with np.load(torch_golden.FILE) as file:
        return dict(file)


def shapes_of(network):
    """Names and shapes of a state dict, as the library has them."""
    return json.loads(golden()[f"{network}/shapes"].tobytes())


def drawn(network):
    return torch_golden.weights(shapes_of(network))


def build(network, arrays):
    """The network of the zoo with the arrays of another library, in evaluation mode."""
    variant = lrnet_jax.get_variant(network)
    tree, num_classes = to_tree(arrays, variant)
    abstract = nnx.eval_shape(
        lambda: lrnet_jax.create_model(network, num_classes=num_classes, rngs=nnx.Rngs(0))
    )
    return merge(split(abstract)[0].evaluate, tree["params"], tree["batch_stats"])


def ours(model, images):
    """Logits and maps of the stages."""
    logits, maps = jax.jit(lambda x: (model(x), model.features(x)))(images)
    return {"logits": logits, **{key: value for key, value in maps.items() if key != "res1"}}


@pytest.mark.parametrize("network", torch_golden.NETWORKS)
def test_names_and_shapes_are_those_of_the_library(network):
    variant = lrnet_jax.get_variant(network)
    theirs = {
        name: tuple(shape)
        for name, shape in shapes_of(network).items()
        if not name.endswith("num_batches_tracked")
    }
    table = tensors(variant, torch_golden.CLASSES)
    assert {tensor.name: tensor.shape for tensor in table} == theirs
    paths = own_shapes(variant, torch_golden.CLASSES)
    assert sorted(tensor.path for tensor in table) == sorted(paths)


@pytest.mark.parametrize("network", torch_golden.COMPUTED)
def test_logits_and_maps_are_those_of_the_library(network):
    found = ours(build(network, drawn(network)), torch_golden.photographs(torch_golden.SIDE)[:2])
    for key, value in found.items():
        kept = value if key == "logits" else value[torch_golden.KEPT]
        want = golden()[f"{network}/{key}"]
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(kept, want, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("network", torch_golden.NETWORKS)
def test_logits_and_maps_are_those_of_the_installed_library(network):
    """Whole photographs, 1000 classes; and torch loads what is written here."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm" if network == "resnet26" else "torchvision")
    theirs = torch_golden.peer(network, num_classes=1000)
    images = torch_golden.photographs(224)
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
    model = build(network, arrays)
    want = torch_golden.computed(theirs, images)
    for key, value in ours(model, images).items():
        np.testing.assert_allclose(value, want[key], atol=1e-4, err_msg=key)

    written = to_arrays(model)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in written.items()})
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), arrays[name], err_msg=name)


def test_the_way_back_gives_every_array_as_it_was():
    arrays = drawn("resnet18")
    model = build("resnet18", arrays)
    written = to_arrays(model)
    assert set(written) == {name for name in arrays if "num_batches" not in name}
    for name, value in written.items():
        assert value.flags.c_contiguous
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)
    assert model.stem[0].norm.use_running_average  # as it was before


def test_a_network_that_torch_does_not_have_keeps_our_names():
    model = lrnet_jax.create_model("lrnet_small", num_classes=10, rngs=nnx.Rngs(0))
    arrays = to_arrays(model)
    assert "params.stages.0.0.branch.1.layer.prior.hidden" in " ".join(sorted(arrays))
    assert not model.stem[0].norm.use_running_average
    tree, num_classes = to_tree(arrays, model.variant)
    assert num_classes == 10
    _, params, batch_stats = split(model)
    want = flatten({"params": params, "batch_stats": batch_stats})
    found = flatten(tree)
    assert found.keys() == want.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, want[path], err_msg=path)


def without(arrays, *names):
    return {name: value for name, value in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: without(a, "layer1.0.bn1.running_var", "layer4.1.conv2.weight"),
            r"the weights lack layer1.0.bn1.running_var, layer4.1.conv2.weight",
        ),
        (lambda a: without(a, "fc.weight"), r"have no fc.weight, .* hold bn1.bias, .* more"),
        (
            lambda a: {**a, "layer1.0.se.fc1.weight": a["fc.bias"]},
            r"have besides layer1.0.se.fc1.weight",
        ),
        (
            lambda a: {**a, "conv1.weight": a["conv1.weight"][:, :1]},
            r"have conv1.weight as \[64, 1, 7, 7\] instead of \[64, 3, 7, 7\]",
        ),
        (
            lambda a: {**a, "fc.bias": a["fc.bias"] * np.float32(np.nan)},
            r"fc.bias has 10 of 10 values that are not finite",
        ),
        (lambda a: {**a, "fc.bias": np.zeros(10, np.int8)}, r"fc.bias must be of floats, got int8"),
    ],
)
def test_arrays_that_do_not_fit_are_listed(change, message):
    with pytest.raises(CheckpointError, match=message) as raised:
        to_tree(change(drawn("resnet18")), lrnet_jax.get_variant("resnet18"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("network", ["resnet18", "lrnet50"])
def test_weights_of_another_network_are_recognised(network):
    with pytest.raises(CheckpointError, match=r"\. They are those of resnet26$"):
        to_tree(drawn("resnet26"), lrnet_jax.get_variant(network))

"""The library as a user installs it: from its wheel, with its own dependencies only.

    make test-wheel

It runs outside the checkout, with the Python of an environment that has nothing but the wheel and
what the wheel asks for.
"""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lrnet_jax
from lrnet_jax.functional import split
from pallas_kernels import local_relation

NOT_NEEDED = (
    "experiments", "grain", "tensorboardX", "tensorflow", "tensorflow_datasets", "tests",
)  # fmt: skip


def check_contents() -> None:
    """The wheel has two packages, both marked as typed, and no other name."""
    distribution = importlib.metadata.distribution("lrnet-jax")
    files = [pathlib.PurePosixPath(file) for file in distribution.files or ()]
    names = {file.parts[0] for file in files}
    assert names == {
        "lrnet_jax", "pallas_kernels", f"lrnet_jax-{lrnet_jax.__version__}.dist-info",
    }, names  # fmt: skip
    for package in ("lrnet_jax", "pallas_kernels"):
        assert pathlib.PurePosixPath(package, "py.typed") in files, package
    assert not [name for name in NOT_NEEDED if importlib.util.find_spec(name) is not None]


def check_operator() -> None:
    """Without queries, keys and prior the operator is the mean over the window."""
    value = jax.random.normal(jax.random.key(0), (1, 5, 5, 4))
    zeros = jnp.zeros((1, 5, 5, 2, 3))
    out = local_relation(zeros, zeros, value, kernel_size=3, channels_per_group=2)
    expected = np.asarray(value, np.float64)[:, 1:4, 1:4].mean((1, 2))
    np.testing.assert_allclose(out[:, 2, 2], expected, rtol=1e-6, atol=1e-6)


def check_network() -> None:
    """A network that is written to disk and loaded again gives the same logits, bit for bit."""
    from lrnet_jax.training.checkpoint_saver import write_model

    model = lrnet_jax.create_model("lrnet_small", num_classes=10, rngs=nnx.Rngs(0))
    _, params, batch_stats = split(model)
    model.eval()  # `split` leaves a network in training mode
    variant = dataclasses.asdict(model.variant)
    metadata = {"network": "lrnet_small", "variant": variant, "num_classes": 10, "step": 0}
    images = jax.random.normal(jax.random.key(1), (2, 28, 28, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "network")
        write_model(path, {"params": params, "batch_stats": batch_stats}, metadata)
        loaded, _ = lrnet_jax.load_checkpoint(path)
    np.testing.assert_array_equal(loaded(images), model(images))


if __name__ == "__main__":
    check_contents()
    check_operator()
    check_network()
    print(f"lrnet_jax {lrnet_jax.__version__} runs alone, with jax {jax.__version__}")

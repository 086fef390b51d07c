"""Logits and feature maps of torchvision's and timm's ResNets, kept for machines without them.

    python -m tests.lrnet_jax.foreign.torch_golden

writes tests/data/torch_networks.npz again: for each network the names and shapes of its state dict,
and for two of them what they compute for two photographs. Their weights are drawn from the names.
"""

import json
import pathlib
import zlib

import numpy as np
from PIL import Image

from lrnet_jax.data.on_disk import MEAN, STD

FILE = pathlib.Path(__file__).parents[2] / "data" / "torch_networks.npz"
PHOTOGRAPHS = pathlib.Path(__file__).parents[3] / "experiments" / "bench" / "photographs"
NETWORKS = ("resnet18", "resnet26", "resnet50", "resnet101")
COMPUTED = ("resnet18", "resnet26")  # basic and bottleneck blocks; torchvision and timm
CLASSES = 10
SIDE = 64
KEPT = np.s_[:, ::3, ::3, ::16]  # of every map


def photographs(side):
    """Four photographs, (4, side, side, 3) float32, normalised."""
    pixels = []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB").resize((side, side))))
    return ((np.stack(pixels) - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def weights(shapes):
    """Arrays for a state dict, drawn from the names: statistics and scales are not 0 and 1."""
    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def draw(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()))  # its stream never changes
    if name.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    if len(shape) > 1:
        fan_in = np.prod(shape[1:])
        return random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
    low, high = {"running_var": (0.5, 1.5), "weight": (0.2, 0.6)}.get(
        name.rpartition(".")[2], (-0.2, 0.2)
    )
    return random.uniform(low, high, shape).astype(np.float32)


def peer(name, num_classes=CLASSES):
    """The network of torchvision, or of timm where torchvision has none, with these weights."""
    import torch

    if name == "resnet26":
        import timm

        network = timm.create_model(name, num_classes=num_classes)
    else:
        import torchvision

        network = getattr(torchvision.models, name)(num_classes=num_classes)
    drawn = weights({key: value.shape for key, value in network.state_dict().items()})
    network.load_state_dict({key: torch.from_numpy(value) for key, value in drawn.items()})
    return network.eval()


def computed(network, images):
    """Logits and the maps of the stages, with channels last."""
    import torch

    maps = {}
    for stage in range(1, 5):
        network.get_submodule(f"layer{stage}").register_forward_hook(
            lambda module, inputs, output, name=f"res{stage + 1}": maps.update({name: output})
        )
    with torch.no_grad():
        logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    found = {name: np.moveaxis(output.numpy(), 1, -1) for name, output in maps.items()}
    return {"logits": logits.numpy(), **found}


def main():
    arrays = {}
    for name in NETWORKS:
        network = peer(name)
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        arrays[f"{name}/shapes"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
        if name in COMPUTED:
            for key, value in computed(network, photographs(SIDE)[:2]).items():
                arrays[f"{name}/{key}"] = value if key == "logits" else value[KEPT]
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()

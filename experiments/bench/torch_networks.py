"""Networks of timm in torch, with the passes that this repository's networks are measured by."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

PACKAGES = ("torch", "timm")


def missing() -> str | None:
    """What is not installed, with what to type; None if nothing is missing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} not installed; type: python -m pip install {' '.join(PACKAGES)}"


def torch_passes(
    name: str, *, batch_size: int, image_size: int, classes: int, compiled: bool
) -> dict[str, Callable[[], None]]:
    """The forward pass (in evaluation mode) and a training step of a network, float32, on a CPU.

    The step is that of `network_programs`: cross-entropy, its gradient, and SGD with momentum 0.9
    and a weight decay of 1e-4.

    Args:
      name: of a network in timm.
      batch_size: images of the batch.
      image_size: height and width of the images.
      classes: number of logits.
      compiled: whether `torch.compile` compiles both passes, at their first call.

    Returns:
      "forward" and "train_step"; each call is complete when it returns.
    """
    import timm
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    images = torch.rand(batch_size, 3, image_size, image_size)
    images = images.to(memory_format=torch.channels_last)  # the layout of convolutions on CPUs
    labels = torch.randint(classes, (batch_size,))

    def build() -> Any:
        model = timm.create_model(name, pretrained=False, num_classes=classes)
        return model.to(memory_format=torch.channels_last)

    evaluated, trained = build().eval(), build().train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    forward, loss = evaluated, lambda x, y: torch.nn.functional.cross_entropy(trained(x), y)
    if compiled:
        forward, loss = torch.compile(forward), torch.compile(loss)

    def run_forward() -> None:
        with torch.inference_mode():
            forward(images)

    def run_step() -> None:
        optimizer.zero_grad()
        loss(images, labels).backward()
        optimizer.step()

    return {"forward": run_forward, "train_step": run_step}

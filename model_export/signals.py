"""What goes through a network's layers, backwards and forwards, on one batch: gradients and responses.

That gradients vanish in deep plain networks is often told as the reason for degradation. The paper says otherwise:
batch normalisation keeps forward signals and gradients alive (section 4.1), and residual networks have smaller
responses (section 4.2, figure 7).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model_export.datasets.base import DataSet

IMAGES = 128


class Signal(NamedTuple):
    """Of one 3×3 convolution, counted from the input.

    The norm of the loss's gradient by its weights, and the standard deviation of its responses: after batch
    normalisation, before ReLU and before the shortcut is added.
    """

    when: str
    layer: int
    gradient: float
    response: float


def measure(network: nn.Module, data: DataSet, when: str) -> list[Signal]:
    """On the first held-out images, in training mode; it leaves weights and statistics as they are."""
    device = next(network.parameters()).device
    images, targets = (each.to(device) for each in next(data.held_out(IMAGES)))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layers = [(name, each) for name, each in network.named_modules() if "downsample" not in name]
    convolutions = [each for _, each in layers if isinstance(each, nn.Conv2d)]
    responses: list[float] = []

    def note(_: nn.Module, __: tuple[Tensor, ...], response: Tensor) -> None:
        responses.append(float(response.detach().std()))

    hooks = [each.register_forward_hook(note) for _, each in layers if isinstance(each, nn.BatchNorm2d)]
    network.train()
    network.zero_grad()
    nn.functional.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
    norms = [float(torch.linalg.vector_norm(each.weight.grad)) for each in convolutions if each.weight.grad is not None]
    for hook in hooks:
        hook.remove()
    network.zero_grad()
    network.load_state_dict(state)
    return [Signal(when, layer, *pair) for layer, pair in enumerate(zip(norms, responses, strict=True), start=1)]

"""Networks that look trained: batch-norm statistics that are not trivial, as fresh ones would hide every fault."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from model_export.catalog import find_architecture

# One block without and, where the option has them, one with a projection or padding: every kind of node once. An export
# takes time by the node.
SHORT = (2, 1, 1, 1)


def trained_like(name: str, classes: int, in_channels: int = 3, blocks: tuple[int, ...] = ()) -> nn.Module:
    """The architecture with random weights and statistics, the same each time, in evaluation mode.

    `blocks` of each stage, where fewer than the architecture has show the same.
    """
    torch.manual_seed(0)
    architecture = find_architecture(name)
    if blocks:
        assert architecture.config is not None
        architecture = replace(architecture, config=replace(architecture.config, blocks=blocks))
    return shaken(architecture.build(classes, in_channels))


def shaken(network: nn.Module) -> nn.Module:
    """Give every batch normalisation scales, biases, means and variances of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean = torch.randn(module.num_features) * 0.3
            module.running_var = torch.rand(module.num_features) + 0.5
    return network.eval()


def hollow(name: str, classes: int) -> dict[str, Tensor]:
    """A state dict for what looks at names and shapes: each tensor is a single zero in memory and in a file."""
    state = find_architecture(name).build_empty(classes).state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}

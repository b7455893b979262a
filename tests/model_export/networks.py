"""Networks that look trained: batch-norm statistics that are not trivial, as fresh ones would hide every fault."""

import torch
from torch import nn

from model_export.catalog import find_architecture


def trained_like(name: str, classes: int, in_channels: int = 3) -> nn.Module:
    """The architecture with random weights and statistics, the same each time, in evaluation mode."""
    torch.manual_seed(0)
    return shaken(find_architecture(name).build(classes, in_channels))


def shaken(network: nn.Module) -> nn.Module:
    """Give every batch normalisation scales, biases, means and variances of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean = torch.randn(module.num_features) * 0.3
            module.running_var = torch.rand(module.num_features) + 0.5
    return network.eval()

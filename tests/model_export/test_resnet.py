"""The networks against the paper's counts and shapes."""

import pytest
import torch
from torch import nn

from model_export.architectures.resnet import BasicBlock, CifarResNet
from model_export.catalog import ARCHITECTURES, find_architecture
from model_export.errors import ExportError

# Option A, 10 classes: the table in the module's docstring; the paper's table 6 rounds to two digits.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


@pytest.mark.parametrize(("depth", "parameters"), PARAMETERS.items())
def test_parameters_and_weight_layers_are_the_papers(depth: int, parameters: int) -> None:
    network = CifarResNet(depth)
    assert sum(each.numel() for each in network.parameters()) == parameters
    assert sum(isinstance(each, nn.Conv2d | nn.Linear) for each in network.modules()) == depth


def test_stages_halve_the_image_and_double_the_filters() -> None:
    network = CifarResNet(20).eval()
    shapes = []
    for stage in (network.layer1, network.layer2, network.layer3):
        stage.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    logits = network(torch.zeros(2, 3, 32, 32))
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert logits.shape == (2, 10)


def test_with_its_branch_closed_a_block_is_its_shortcut() -> None:
    block = CifarResNet(20).eval().layer2[0]
    assert isinstance(block, BasicBlock)
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 32, 32)
    expected = torch.zeros(2, 32, 16, 16)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("depth", [0, 2, 7, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(depth)


def test_the_catalogue_builds_what_it_lists_and_names_the_choice() -> None:
    assert list(ARCHITECTURES) == [f"resnet{depth}" for depth in PARAMETERS]
    assert find_architecture("resnet32").build(100).fc.out_features == 100
    with pytest.raises(ExportError, match="resnet20, resnet32"):
        find_architecture("resnet21")

"""The networks against the paper's counts and shapes."""

import json

import pytest
import torch
from torch import nn

from model_export.architectures.resnet import BasicBlock, ResNet
from model_export.catalog import find_architecture, listed
from model_export.cli import main
from model_export.describe import compare_blocks, describe
from model_export.errors import ExportError
from model_export.graph import PooledClassifier

# The paper rounds (tables 1 and 6); these are exact, and torchvision's where it has the model.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "plain18": 11_515_688,
    "plain34": 21_623_848,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "plain20": 269_722,
    "resnet20-b": 272_474,
    "resnet56-b": 855_770,
}
MULTIPLY_ADDS = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet50-v1": 3.858,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "vgg19": 19.632,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_and_weight_layers(name: str, parameters: int) -> None:
    description = describe(find_architecture(name))
    assert description.parameters == parameters
    assert sum(stage.parameters for stage in description.stages) == parameters
    assert description.weight_layers == find_architecture(name).depth


@pytest.mark.parametrize(("name", "billions"), MULTIPLY_ADDS.items())
def test_multiply_adds(name: str, billions: float) -> None:
    assert round(describe(find_architecture(name)).multiply_adds / 1e9, 3) == billions


def test_layers_are_counted_stage_by_stage_as_in_table_1() -> None:
    stages = describe(find_architecture("resnet18")).stages
    assert [stage.weight_layers for stage in stages] == [1, 4, 4, 4, 4, 1]
    assert [stage.output for stage in stages] == [
        (64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (1000,),
    ]  # fmt: skip
    layer3 = describe(find_architecture("resnet101")).stages[3]
    assert (layer3.block, layer3.repeats) == (["1×1, 256", "3×3, 256", "1×1, 1024"], 23)


def test_a_bottleneck_costs_a_seventeenth_of_two_3x3_on_the_same_channels() -> None:
    assert compare_blocks() == {"3×3 + 3×3": 1_179_648, "1×1 + 3×3 + 1×1": 69_632}


def test_every_listed_network_is_within_8_percent_of_the_paper() -> None:
    for architecture in listed():
        for figure, difference in describe(architecture).differences().items():
            assert abs(difference) < 0.08, (architecture.name, figure)


def test_describe_and_list_print_tables_and_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "resnet50", "--compare", "resnet152"]) == 0
    text = capsys.readouterr().out
    for expected in ("layer4", "25,557,032", "33.6 %", "35.5 %", "1,179,648", "3.800"):
        assert expected in text, expected
    assert main(["describe", "resnet50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 25_557_032
    assert main(["list"]) == 0
    assert "resnet152" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    assert {each["name"] for each in json.loads(capsys.readouterr().out)} >= {"plain34", "vgg19", "resnet110"}


def test_stages_halve_the_image_and_double_the_filters() -> None:
    network = find_architecture("resnet20").build(10).eval()
    assert isinstance(network, ResNet)
    assert network.features(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 8, 8)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_with_its_branch_closed_a_block_is_its_shortcut() -> None:
    block = find_architecture("resnet20").build(10).eval().get_submodule("layer2.0")
    assert isinstance(block, BasicBlock)
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 32, 32)
    expected = torch.zeros(2, 32, 16, 16)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def test_with_its_branch_closed_a_plain_block_passes_nothing() -> None:
    block = find_architecture("plain20").build(10).eval().get_submodule("layer1.0")
    assert isinstance(block, BasicBlock)
    nn.init.zeros_(block.bn2.weight)
    assert block(torch.rand(1, 16, 32, 32)).abs().max() == 0


def test_projections_stand_where_the_option_puts_them() -> None:
    def projections(name: str) -> int:
        return sum("downsample.0.weight" in key for key in find_architecture(name).build_empty(10).state_dict())

    assert [projections(f"resnet34{option}") for option in ("-a", "", "-b", "-c")] == [0, 3, 3, 16]
    assert [projections(f"resnet20{option}") for option in ("", "-b", "-c")] == [0, 2, 9]


def test_both_places_of_a_bottlenecks_stride_have_the_same_keys_and_another_function() -> None:
    paper, torchvision = (find_architecture(name).build(10).eval() for name in ("resnet50-v1", "resnet50"))
    paper.load_state_dict(torchvision.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert (paper(x) - torchvision(x)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg19_bn", "resnet20"])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (96, 1)])
def test_other_sizes_classes_and_grey_images_are_built(name: str, size: int, channels: int) -> None:
    network = find_architecture(name).build(7, channels).eval()
    assert network(torch.zeros(1, channels, size, size)).shape == (1, 7)
    assert isinstance(network, PooledClassifier) == (name != "vgg19_bn")


def test_any_depth_of_6n_plus_2_is_built_also_where_imagenet_has_the_number() -> None:
    assert describe(find_architecture("cifar-resnet50")).weight_layers == 50
    assert describe(find_architecture("resnet8")).weight_layers == 8
    assert find_architecture("resnet32").build(100).get_parameter("fc.weight").shape == (100, 64)


@pytest.mark.parametrize(
    "name", ["resnet21", "resnet2", "plain50", "resnet18-v1", "resnet34-d", "alexnet", "plain20-b", ""]
)
def test_a_name_that_means_nothing_is_refused_with_the_choice(name: str) -> None:
    with pytest.raises(ExportError, match="resnet18, resnet34"):
        find_architecture(name)

"""Skip schedules: closed blocks are their shortcut alone, learn nothing, and open on time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model_export.catalog import find_architecture
from model_export.cli import main
from model_export.skip_schedule import parse_schedule, set_branches
from tests.model_export.cifar_archive import small_cifar10
from tests.model_export.networks import trained_like

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network.eval()(IMAGES)
    return answer


@pytest.mark.parametrize("name", ["resnet14", "resnet20-b", "resnet14-c", "resnet50"])
def test_a_closed_stage_is_its_shortcuts_alone(name: str) -> None:
    network = trained_like(name, classes=10)
    whole = logits(network)
    schedule = parse_schedule("0.5:layer2")
    set_branches(network, schedule, 0.49)
    closed = logits(network)
    set_branches(network, schedule, 0.5)
    assert torch.equal(logits(network), whole), "open from half of the epochs on"
    for path, module in network.named_modules():
        # The last normalisation of a block at zero leaves its branch at zero.
        last = "bn3" if name == "resnet50" else "bn2"
        if path.startswith("layer2.") and path.endswith(last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    assert not torch.equal(closed, whole)
    torch.testing.assert_close(closed, logits(network), rtol=0, atol=0)


def test_one_block_and_several_shares() -> None:
    network = find_architecture("resnet20").build(10)
    schedule = parse_schedule("0.2:layer2.1, 0.6:layer3")

    def closed() -> set[str]:
        return {path for path, module in network.named_modules() if getattr(module, "closed", False)}

    seen = []
    for done in (0.0, 0.2, 0.6):
        set_branches(network, schedule, done)
        seen.append(closed())
    third = {"layer3.0", "layer3.1", "layer3.2"}
    assert seen == [third | {"layer2.1"}, third, set()]


def test_what_is_closed_learns_nothing_and_what_opened_does(tmp_path: Path) -> None:
    data = f"cifar10:{small_cifar10(tmp_path / 'cifar')}"

    def train(schedule: str) -> dict[str, Tensor]:
        out = tmp_path / f"{schedule}.safetensors"
        command = ["train", "--arch", "resnet14", "--data", data, "--epochs", "2", "--skip-schedule", schedule]
        assert main([*command, "--out", str(out)]) == 0
        return load_file(out)

    torch.manual_seed(0)
    begun = find_architecture("resnet14").build(10).state_dict()
    never, late = train("1:layer2"), train("0.5:layer2")
    inside = [key for key in begun if key.startswith("layer2.") and "conv" in key]
    assert all(torch.equal(begun[key], never[key]) for key in inside)
    assert not any(torch.equal(begun[key], late[key]) for key in inside)
    assert not torch.equal(begun["layer1.0.conv1.weight"], never["layer1.0.conv1.weight"])

"""What the card says of a network's structure, against the paper's tables 1 and 6 and figure 3."""

import pytest

from model_export.catalog import find_architecture, listed
from model_export.describe import Task
from model_export.structure import structure_of
from service.artifact import Structure


def structure(name: str) -> Structure:
    architecture = find_architecture(name)
    return structure_of(architecture, Task(10, 32 if name.startswith(("resnet20", "plain20", "resnet110")) else 224, 3))


@pytest.mark.parametrize("name", [each.name for each in listed()])
def test_the_drawn_layers_are_the_weighted_layers(name: str) -> None:
    found = structure(name)
    weighted = [
        layer.kind in ("conv", "fc")
        for stage in found.stages
        for blocks in stage.blocks
        for layer in blocks.layers * blocks.count
    ]
    assert sum(weighted) == found.weight_layers


@pytest.mark.parametrize(
    ("name", "counts", "first", "others"),
    [
        ("resnet18", [2, 2, 2, 2], "projection", "identity"),
        ("resnet50", [3, 4, 6, 3], "projection", "identity"),
        ("resnet152", [3, 8, 36, 3], "projection", "identity"),
        ("resnet20", [3, 3, 3], "zero_padding", "identity"),
        ("resnet110", [18, 18, 18], "zero_padding", "identity"),
        ("resnet20-b", [3, 3, 3], "projection", "identity"),
        ("resnet20-c", [3, 3, 3], "projection", "projection"),
        ("plain20", [3, 3, 3], None, None),
    ],
)
def test_stages_have_the_papers_blocks_and_shortcuts(
    name: str, counts: list[int], first: str | None, others: str | None
) -> None:
    found = structure(name)
    stages = [stage for stage in found.stages if stage.name.startswith("layer")]
    assert [sum(blocks.count for blocks in stage.blocks) for stage in stages] == counts
    shortcuts = [[blocks.shortcut for blocks in stage.blocks] for stage in stages]
    assert shortcuts[-1] == [first, others]  # the first block halves the map, so it differs
    per_block = 3 if name in ("resnet50", "resnet152") else 2
    assert {len(blocks.layers) for stage in stages for blocks in stage.blocks} == {per_block}


def test_a_folded_stage_says_what_goes_in_and_out() -> None:
    found = structure("resnet50")
    assert [stage.output for stage in found.stages] == [
        (64, 112, 112),
        (256, 56, 56),
        (512, 28, 28),
        (1024, 14, 14),
        (2048, 7, 7),
        (10, 1, 1),
    ]
    assert [layer.kernel for layer in found.stages[1].blocks[0].layers] == [1, 3, 1]

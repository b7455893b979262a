"""Skip schedules: named residual branches stay closed for the first part of training, and open then.

A closed block is its shortcut alone, so the network begins shallow and grows into its depth. He et al. train all
branches from the first step; the nearest published relative is stochastic depth (Huang et al., arXiv 1603.09382), which
closes branches at random in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from model_export.architectures.resnet import Block
from model_export.errors import ExportError


@dataclass(frozen=True)
class Closure:
    """What stays closed for a `share` of the epochs, in [0, 1]: a stage (`layer2`) or a block (`layer2.1`)."""

    share: float
    name: str


def parse_schedule(text: str) -> tuple[Closure, ...]:
    """`SHARE:NAME`, several by commas: `0.2:layer2,0.4:layer3`.

    Raises:
        ValueError: it has another form, or a share is not from 0 to 1.
    """
    closures = []
    for part in text.split(","):
        share, colon, name = part.strip().partition(":")
        if not colon or not name or not 0 <= float(share) <= 1:
            raise ValueError(part)
        closures.append(Closure(float(share), name))
    return tuple(closures)


def set_branches(network: nn.Module, schedule: Sequence[Closure], done: float) -> None:
    """Close and open the branches as the schedule has them after a share of the epochs.

    Raises:
        ExportError: a name is none of the network's stages and blocks, or they have no shortcut.
    """
    named = {closure: _blocks(network, closure.name) for closure in schedule}
    closed = {block for closure, blocks in named.items() if done < closure.share for block in blocks}
    for block in network.modules():
        if isinstance(block, Block):
            block.closed = block in closed


def _blocks(network: nn.Module, name: str) -> list[Block]:
    place = dict(network.named_modules()).get(name)
    blocks = [each for each in place.modules() if isinstance(each, Block)] if place else []
    if not blocks:
        names = [path for path, each in network.named_modules() if any(isinstance(c, Block) for c in each.children())]
        choice = f"give one of {', '.join(names)}, or a block of it as in {names[0]}.1" if names else "it has no blocks"
        raise ExportError(f"the skip schedule names {name}, which is no stage or block of this network: {choice}")
    if any(block.downsample is None for block in blocks):
        raise ExportError(
            "a plain network has no shortcuts, so its branches cannot be closed: leave --skip-schedule away"
        )
    return blocks

"""Shares of the traffic for a second version: `digits:2:10%`, as SERVICE_CANARY and SERVICE_SHADOW write it.

A caller stays on one side: its key (the header X-Canary-Key, or its request id) and the model's name decide, the same
way in every replica and after every restart.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from service.folder import VERSION

Alias = Literal["stable", "canary"]
ALIASES: tuple[Alias, ...] = ("stable", "canary")
Version = int | Alias

_SPLIT = re.compile(rf"([^:,]+):({VERSION}|stable|canary)(?::([0-9]{{1,3}}(?:\.[0-9]+)?)%)?")


@dataclass(frozen=True)
class Split:
    """A version of a model, and the share of its callers in (0, 1] that it gets."""

    model: str
    version: Version
    share: float

    def takes(self, key: str) -> bool:
        """Whether the caller with this key belongs to the share."""
        digest = hashlib.sha256(f"{self.model}\0{key}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.share * 2**64


def parse_splits(text: str, *, whole: bool) -> Mapping[str, Split]:
    """By model, what a comma-separated setting says; with `whole` a split without a share is all of the traffic.

    Raises:
        ValueError: what is wrong with it.
    """
    splits: dict[str, Split] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        found = _SPLIT.fullmatch(part)
        share = float(found[3] or (100 if whole else 0)) / 100 if found else 0.0
        if found is None or not 0 < share <= 1:
            raise ValueError(f"{part!r} is not model:version:share%, as in digits:2:10%")
        if found[1] in splits:
            raise ValueError(f"{found[1]} has two shares")
        version: Version = int(found[2]) if found[2].isdecimal() else _alias(found[2])
        splits[found[1]] = Split(found[1], version, share)
    return splits


def _alias(text: str) -> Alias:
    return "stable" if text == "stable" else "canary"

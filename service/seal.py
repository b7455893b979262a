"""The seal: digests by which `resnet-serve` finds a changed byte in an artifact and names what it belongs to.

An artifact's file is the graph with its weights, then the card. The card's seal has the digest of the former and one
for each of its own fields. It guards against damage and against edits by hand, not against somebody who seals anew:
where the files come from is for the deployment to decide.
"""

import hashlib
import json
from pathlib import Path

from service.artifact import ModelCard, Seal

CHUNK = 2**20
GRAPH = "the graph or its weights"


def seal(card: ModelCard, graph: bytes) -> ModelCard:
    """The card with its seal; `graph` is the serialised model without the card, the beginning of the file."""
    digests = {name: _digest_of(value) for name, value in _parts(card).items()}
    record = Seal(graph_bytes=len(graph), graph_sha256=hashlib.sha256(graph).hexdigest(), card=digests)
    return card.model_copy(update={"seal": record})


def changed_parts(card: ModelCard, path: Path) -> list[str]:
    """What in the file is not as it was sealed, by name; a card without a seal vouches for nothing.

    Raises:
        OSError: the file cannot be read.
    """
    if card.seal is None:
        return []
    graph = [] if _digest_of_graph(path, card.seal.graph_bytes) == card.seal.graph_sha256 else [GRAPH]
    now = {name: _digest_of(value) for name, value in _parts(card).items()}
    names = sorted(now.keys() | card.seal.card.keys())
    return graph + [name for name in names if now.get(name) != card.seal.card.get(name)]


def _parts(card: ModelCard) -> dict[str, object]:
    """The card's fields by name, those of the preprocessing each by itself."""
    fields = card.model_dump(mode="json", exclude={"seal"})
    preprocessing = fields.pop("preprocessing")
    return fields | {f"preprocessing.{name}": value for name, value in preprocessing.items()}


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_graph(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()

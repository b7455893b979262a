"""The seal: digests by which `resnet-serve` finds a changed byte in an artifact and names what it belongs to.

An artifact's file is the graph with its weights, then one metadata property of ONNX with the card, and nothing behind
it. The card's seal has the digest of the graph and one for each of the card's own fields. All of it is read and
compared before onnxruntime opens the file. The seal guards against damage and against edits by hand, not against
somebody who seals anew: where the files come from is for the deployment to decide.
"""

import hashlib
import json
import mmap
from dataclasses import dataclass
from pathlib import Path

from service.artifact import CARD_PROPERTY, ArtifactError, ModelCard, Preprocessing, Seal, parse_card

# Large: after each the thread may wait 5 ms for the interpreter's lock, while others import or answer.
CHUNK = 2**24
GRAPH = "the graph or its weights"
REST = "the bytes around the card"
# Protobuf: a StringStringEntryProto with its key (field 1) and the beginning of its value (field 2).
_KEY = b"\x0a" + bytes([len(CARD_PROPERTY)]) + CARD_PROPERTY.encode() + b"\x12"
# ModelProto.metadata_props is field 14.
_PROPERTY = b"\x72"
_MAX_VARINT = 5


@dataclass(frozen=True)
class CardInFile:
    """The last card in a file: its JSON, and the bytes [start, end) of the property that holds it."""

    text: str
    start: int
    end: int


def seal(card: ModelCard, graph: bytes) -> ModelCard:
    """The card with its seal; `graph` is the serialised model without the card, the beginning of the file."""
    digests = {name: _digest_of(value) for name, value in _parts(card).items()}
    record = Seal(graph_bytes=len(graph), graph_sha256=hashlib.sha256(graph).hexdigest(), card=digests)
    return card.model_copy(update={"seal": record})


def unsealed_card(path: Path) -> ModelCard | None:
    """The card in a file, once the whole file is found to be as it was sealed; None for a file without a card.

    Raises:
        ArtifactError: what was changed.
        OSError: the file cannot be read.
    """
    found = find_card(path)
    if found is None:
        return None
    card = _read(found.text)
    if card.seal is None and card.export is not None:
        raise ArtifactError("the seal of its card is gone: convert it again")
    if changed := _changed(card, path, found):
        raise ArtifactError(f"{', '.join(changed)} differ from what was exported (sha256): convert it again")
    return card


def changed_parts(card: ModelCard, path: Path) -> list[str]:
    """What in the file is not as it was sealed, by name; a card without a seal vouches for nothing.

    Raises:
        OSError: the file cannot be read.
    """
    return _changed(card, path, find_card(path))


def _changed(card: ModelCard, path: Path, found: CardInFile | None) -> list[str]:
    if card.seal is None:
        return []
    changed = [] if _digest_of_graph(path, card.seal.graph_bytes) == card.seal.graph_sha256 else [GRAPH]
    now = {name: _digest_of(value) for name, value in _parts(card).items()}
    names = sorted(now.keys() | card.seal.card.keys())
    # A field that is younger than the seal is not in it, and has nothing in it.
    changed += [name for name in names if now.get(name) != card.seal.card.get(name, NOTHING)]
    whole = found is not None and (found.start, found.end) == (card.seal.graph_bytes, path.stat().st_size)
    return changed if changed or whole else [REST]


def find_card(path: Path) -> CardInFile | None:
    """Where the card lies in a file, without parsing ONNX.

    Raises:
        OSError: the file cannot be read.
    """
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.rfind(_KEY)
        if at < 0:
            return None
        length, text_at = _varint(content, at + len(_KEY))
        end = min(text_at + length, len(content))
        header = _PROPERTY + _encoded_varint(end - at)
        start = at - len(header) if content[max(0, at - len(header)) : at] == header else at
        return CardInFile(content[text_at:end].decode(errors="replace"), start, end)


def _read(text: str) -> ModelCard:
    try:
        json.loads(text)
    except ValueError as error:
        place = error.pos if isinstance(error, json.JSONDecodeError) else len(text)
        raise ArtifactError(
            f"{_field_at(text, place)} in its card was changed and is no JSON: convert it again"
        ) from error
    return parse_card(text)


def _field_at(text: str, place: int) -> str:
    """The card's field in which a place of its JSON lies."""
    fields = [*ModelCard.model_fields, *Preprocessing.model_fields]
    return max(fields, key=lambda name: text.rfind(f'"{name}":', 0, place))


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A protobuf number, and the place behind it."""
    value = 0
    for position, byte in enumerate(content[at : at + _MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, at + position + 1
    return 0, at


def _encoded_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _parts(card: ModelCard) -> dict[str, object]:
    """The card's fields by name, those of the preprocessing each by itself."""
    fields = card.model_dump(mode="json", exclude={"seal"})
    preprocessing = fields.pop("preprocessing")
    return fields | {f"preprocessing.{name}": value for name, value in preprocessing.items()}


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


NOTHING = _digest_of(None)


def _digest_of_graph(path: Path, size: int) -> str:
    digest, chunk = hashlib.sha256(), memoryview(bytearray(min(CHUNK, size)))
    with path.open("rb", buffering=0) as file:
        while size > 0 and (read := file.readinto(chunk[: min(CHUNK, size)])):
            digest.update(chunk[:read])
            size -= read
    return digest.hexdigest()

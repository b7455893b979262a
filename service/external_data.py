"""Which other files an ONNX file takes its weights from, found without loading it.

onnxruntime opens whatever paths the file names, so they are looked at first. Only the parts of the protobuf message
that can name a file are walked; weights are skipped by their length.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.artifact import ArtifactError

# Messages of onnx.proto by the number of the field that holds them.
_Kind = str
_FIELDS: dict[_Kind, dict[int, _Kind]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}
_VARINT = 0
_GROUP = (3, 4)
_MAX_VARINT = 10
# Deeper than any exporter nests graphs in attributes; a file that was made to exhaust the stack is refused.
_MAX_DEPTH = 64


class _Field(NamedTuple):
    number: int
    wire_type: int
    start: int
    end: int


def refuse_files_outside(path: Path) -> None:
    """Let no model read what lies outside its folder.

    Raises:
        ArtifactError: it asks for it, or is no ONNX file.
        OSError: it cannot be read.
    """
    folder = path.parent.resolve()
    for location in external_files(path):
        if not (folder / location).resolve().is_relative_to(folder):
            raise ArtifactError(f"it asks for a file outside its folder: {location!r}")


def refuse_other_files(path: Path) -> None:
    """Let no model read any other file, where the one was sealed or signed.

    Raises:
        ArtifactError: it asks for one, or is no ONNX file.
        OSError: it cannot be read.
    """
    for location in external_files(path):
        raise ArtifactError(f"it has weights in another file ({location!r}), which its seal or signature leaves out")


def external_files(path: Path) -> list[str]:
    """The locations that tensors of the file name, as written there.

    Raises:
        ArtifactError: it is no ONNX file.
        OSError: it cannot be read.
    """
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return sorted(set(_locations(content, "model", 0, len(content), _MAX_DEPTH)))


def _locations(content: mmap.mmap, kind: _Kind, start: int, end: int, depth: int) -> Iterator[str]:
    if not depth:
        raise ArtifactError("it is nested deeper than any model")
    inner = _FIELDS[kind]
    for field in _fields(content, start, end):
        if field.wire_type != _LENGTH_DELIMITED or field.number not in inner:
            continue
        if inner[field.number] == "entry":
            yield from _location(content, field)
        else:
            yield from _locations(content, inner[field.number], field.start, field.end, depth - 1)


def _location(content: mmap.mmap, entry: _Field) -> Iterator[str]:
    """The value of an external_data entry whose key is `location`."""
    texts = {
        each.number: content[each.start : each.end].decode(errors="replace")
        for each in _fields(content, entry.start, entry.end)
        if each.wire_type == _LENGTH_DELIMITED
    }
    if texts.get(1) == "location":
        yield texts.get(2, "")


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        tag, at = _varint(content, at, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, after = _varint(content, at, end)
        elif wire_type == _LENGTH_DELIMITED:
            length, at = _varint(content, at, end)
            after = at + length
        elif wire_type in _FIXED:
            after = at + _FIXED[wire_type]
        elif wire_type in _GROUP:
            after = at  # its begin or its end; what is in it is looked at as if it were here
        else:
            raise ArtifactError("it is no ONNX file")
        if after > end:
            raise ArtifactError("it is no ONNX file, or not a whole one")
        yield _Field(number, wire_type, at, after)
        at = after


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for position in range(_MAX_VARINT):
        if at + position >= end:
            break
        byte = content[at + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, at + position + 1
    raise ArtifactError("it is no ONNX file, or not a whole one")

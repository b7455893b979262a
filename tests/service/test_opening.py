"""A model is opened ahead of time: once, only as it still is, and with its reason where it cannot be."""

import os
import threading
from pathlib import Path

import pytest

from service.artifact import ArtifactError
from service.folder import discover
from service.opening import Opener
from tests.backends import ColourBackend
from tests.waiting import PATIENCE


class Counting:
    """Opens colour models and remembers which file it opened when; refuses the ones that say `broken`."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.has_read = threading.Event()

    def open(self, path: Path) -> ColourBackend:
        self.opened.append(f"{path.parent.parent.name}/{path.parent.name}")
        content = path.read_bytes()
        self.has_read.set()
        if content == b"broken":
            raise ArtifactError("it is broken")
        return ColourBackend()


def test_the_first_model_is_opened_ahead_and_only_once(colour_models: Path) -> None:
    (colour_models / "paints" / "1").mkdir(parents=True)
    (colour_models / "paints" / "1" / "model.onnx").touch()
    files = Counting()
    opener = Opener(files.open)
    opener.begin(colour_models)
    colours, paints = discover(colour_models)
    told: list[str] = []
    first = opener.open(colours, told.append)
    assert files.opened == ["colours/1"]
    assert first.card.name == "colours"
    assert told == ["golden"]
    opener.open(paints)
    assert files.opened == ["colours/1", "paints/1"]
    opener.open(colours)
    assert files.opened == ["colours/1", "paints/1", "colours/1"], "loaded anew, it is opened anew"


def test_a_model_that_was_replaced_meanwhile_is_opened_anew(colour_models: Path) -> None:
    files = Counting()
    opener = Opener(files.open)
    opener.begin(colour_models)
    assert files.has_read.wait(PATIENCE)
    (location,) = discover(colour_models)
    new = location.path.with_name("new")
    new.write_bytes(b"broken")
    os.replace(new, location.path)
    with pytest.raises(ArtifactError, match="it is broken"):
        opener.open(location)


def test_what_failed_ahead_says_why_when_it_is_asked_for(colour_models: Path) -> None:
    (location,) = discover(colour_models)
    location.path.write_bytes(b"broken")
    opener = Opener(Counting().open)
    opener.begin(colour_models)
    with pytest.raises(ArtifactError, match="it is broken"):
        opener.open(location)


def test_a_folder_without_models_is_left_for_later(tmp_path: Path) -> None:
    files = Counting()
    Opener(files.open).begin(tmp_path / "not there yet")
    assert files.opened == []

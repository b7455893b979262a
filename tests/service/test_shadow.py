"""A version on the side is compared, never waited for, and shed first."""

import concurrent.futures
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.costs import Arrangement
from service.runtime import Array, Outputs
from service.settings import SettingsError, read_settings
from tests.backends import ColourBackend
from tests.service.client import encode
from tests.service.test_control import Colours, classify, controlled, publish
from tests.waiting import eventually


class Blind(Colours):
    """Version 2 takes everything for blue."""

    def open(self, path: Path) -> ColourBackend:
        backend = super().open(path)
        if path.parent.name == "2":
            backend.run = blue  # type: ignore[method-assign]
        return backend


def blue(images: Array, *, features: bool = False, arrangement: Arrangement = "together") -> Outputs:
    return Outputs(np.tile(np.array([0, 0, 1], np.float32), (len(images), 1)))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in (1, 2):
        publish(tmp_path, "colours", version)
    (tmp_path / "colours" / "aliases.json").write_text('{"stable": 1}')
    return tmp_path


def count(client: TestClient, result: str) -> float:
    series = f'shadow_images_total{{model="colours",result="{result}",version="2"}} '
    found = [line for line in client.get("/metrics").text.splitlines() if line.startswith(series)]
    return float(found[0].removeprefix(series)) if found else 0


def test_a_shadow_is_compared_and_the_caller_gets_the_first_versions_answer(models: Path) -> None:
    with controlled(models, "none", Blind(), shadow="colours:2") as client:
        for colour in ("red", "blue", "green"):
            before = count(client, "agreed") + count(client, "disagreed")
            answer = client.post("/classify", content=encode(colour)).json()
            assert (answer["version"], answer["predictions"][0]["label"]) == (1, colour)
            eventually(lambda before=before: count(client, "agreed") + count(client, "disagreed") == before + 1)  # type: ignore[misc]
        assert (count(client, "agreed"), count(client, "disagreed")) == (1, 2)
        text = client.get("/metrics").text
        assert 'shadow_seconds_count{model="colours",role="primary",version="1"} 3.0' in text
        assert 'shadow_seconds_count{model="colours",role="shadow",version="2"} 3.0' in text
        assert classify(client, version=1).json()["version"] == 1
        assert count(client, "agreed") + count(client, "disagreed") == 3, "a request that named its version was shown"


def test_a_shadow_that_is_slow_or_broken_changes_nothing_for_callers(models: Path) -> None:
    colours = Colours()
    with controlled(models, "none", colours, shadow="colours:2") as client:
        shadow = colours.last("colours", 2)
        shadow.hold()
        assert [classify(client).status_code for _ in range(5)] == [200] * 5
        eventually(lambda: count(client, "shed") >= 3)  # one runs, one may wait
        shadow.error = ValueError("broken")
        shadow.free.set()
        eventually(lambda: count(client, "failed") >= 1)
        assert classify(client).status_code == 200


def test_shadows_are_shed_while_callers_wait(models: Path) -> None:
    colours = Colours()
    with controlled(models, "none", colours, shadow="colours:2", max_batch_size=1) as client:
        first = colours.last("colours", 1)
        ran = len(colours.last("colours", 2).batches)
        first.hold()
        with concurrent.futures.ThreadPoolExecutor(9) as threads:
            running = [threads.submit(classify, client) for _ in range(9)]
            eventually(lambda: "classify_queue_depth 8.0" in client.get("/metrics").text)
            for answered in range(1, 8):  # one caller is on the device then, and others wait
                first.step()
                eventually(lambda answered=answered: count(client, "shed") == answered)  # type: ignore[misc]
            assert len(colours.last("colours", 2).batches) == ran
            first.free.set()
            assert {each.result().status_code for each in running} == {200}


def test_a_share_of_callers_is_shown(models: Path) -> None:
    with controlled(models, "none", shadow="colours:2:30%") as client:
        for number in range(100):
            classify(client, {"x-canary-key": f"caller-{number}"})
        eventually(lambda: 10 < count(client, "agreed") + count(client, "shed") < 50)


def test_a_shadow_that_makes_no_sense_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="SERVICE_SHADOW"):
        read_settings({"shadow": "digits"})

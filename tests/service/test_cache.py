"""The result cache: what it saves, what it must never mix up, and who computes when callers give up."""

import concurrent.futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.backends import ColourBackend
from tests.service.client import COLOURS, encode, serving
from tests.service.test_control import Colours, controlled, publish
from tests.waiting import PATIENCE, eventually

MEBIBYTE = 2**20


def classify(client: TestClient, colour: str = "red", **query: object) -> Any:
    return client.post("/classify", params=query, content=encode(colour))  # type: ignore[arg-type]


def looked_up(client: TestClient) -> dict[str, int]:
    lines = client.get("/metrics").text.splitlines()
    found = {result: f'classify_cache_lookups_total{{result="{result}"}} ' for result in ("hit", "miss", "coalesced")}
    return {
        result: round(float(line.removeprefix(start)))
        for result, start in found.items()
        for line in lines
        if line.startswith(start)
    }


def occupy(client: TestClient, backend: ColourBackend, threads: concurrent.futures.Executor) -> Future[Any]:
    """The answer that will come when the device, which is held with it, is set free."""
    backend.hold()
    occupied = threads.submit(classify, client, "green")
    assert backend.busy.wait(PATIENCE)
    return occupied


@pytest.fixture
def backend() -> ColourBackend:
    return ColourBackend()


def test_an_image_that_was_answered_is_not_computed_again(colour_models: Path, backend: ColourBackend) -> None:
    with serving(colour_models, backend, cache_bytes=MEBIBYTE) as client:
        warmed_up = len(backend.batches)
        first = classify(client)
        again = classify(client)
        assert first.json() == again.json()
        assert "inference;dur=0.000" in again.headers["server-timing"]
        assert classify(client, top_k=1).json()["predictions"] == first.json()["predictions"][:1]
        assert len(backend.batches) == warmed_up + 1
        assert looked_up(client) == {"hit": 2, "miss": 1, "coalesced": 0}
        assert classify(client, "blue").json()["predictions"][0]["label"] == "blue"


def test_without_the_setting_nothing_is_kept(colour_models: Path, backend: ColourBackend) -> None:
    with serving(colour_models, backend) as client:
        warmed_up = len(backend.batches)
        for _ in range(2):
            classify(client)
        assert len(backend.batches) == warmed_up + 2
        assert looked_up(client) == {"hit": 0, "miss": 0, "coalesced": 0}


def test_two_models_and_two_files_of_one_version_never_share_an_entry(tmp_path: Path) -> None:
    colours = Colours()
    models = tmp_path / "models"
    for name in ("one", "other"):
        publish(models, name, 1)
    with controlled(models, "poll", colours, cache_bytes=MEBIBYTE) as client:
        for name in ("one", "other"):
            assert classify(client, model=name).status_code == 200
        publish(models, "one", 1, "another file")
        eventually(lambda: len(colours.opened) == 3)
        eventually(lambda: colours.opened[0][1].closed)
        assert classify(client, model="one").status_code == 200
        assert looked_up(client) == {"hit": 0, "miss": 3, "coalesced": 0}
        assert all(backend.batches[-1] == 1 for _, backend in colours.opened)


def test_identical_images_on_their_way_are_computed_once(colour_models: Path, backend: ColourBackend) -> None:
    with (
        serving(colour_models, backend, cache_bytes=MEBIBYTE) as client,
        concurrent.futures.ThreadPoolExecutor(8) as threads,
    ):
        warmed_up = len(backend.batches)
        backend.hold()
        callers = [threads.submit(classify, client) for _ in range(8)]
        eventually(lambda: looked_up(client) == {"hit": 0, "miss": 1, "coalesced": 7})
        backend.free.set()
        assert {each.result().json()["predictions"][0]["label"] for each in callers} == {"red"}
        assert backend.batches[warmed_up:] == [1]


def test_a_caller_who_gives_up_does_not_take_the_others_with_it(colour_models: Path, backend: ColourBackend) -> None:
    with (
        serving(colour_models, backend, cache_bytes=MEBIBYTE) as client,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        occupied = occupy(client, backend, threads)
        first = threads.submit(classify, client, timeout_ms=2000)
        eventually(lambda: looked_up(client)["miss"] == 2)
        others = [threads.submit(classify, client) for _ in range(2)]
        eventually(lambda: looked_up(client)["coalesced"] == 2)
        assert first.result().status_code == 504
        backend.free.set()
        assert [each.result().status_code for each in [occupied, *others]] == [200] * 3


def test_a_caller_in_a_hurry_does_not_wait_for_one_who_is_not(colour_models: Path, backend: ColourBackend) -> None:
    with (
        serving(colour_models, backend, cache_bytes=MEBIBYTE) as client,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        warmed_up = len(backend.batches)
        occupied = occupy(client, backend, threads)
        asked = []
        for priority, results in (("low", (2, 0)), ("high", (3, 0)), ("normal", (3, 1))):
            headers = {"X-Priority": priority}
            asked.append(threads.submit(client.post, "/classify", content=encode("red"), headers=headers))
            expected = dict(zip(("miss", "coalesced"), results, strict=True))
            eventually(lambda: looked_up(client).items() >= expected.items())  # noqa: B023
        backend.free.set()
        assert [each.result().status_code for each in [occupied, *asked]] == [200] * 4
        assert sum(backend.batches[warmed_up:]) == 3
        assert classify(client).status_code == 200
        assert looked_up(client) == {"hit": 1, "miss": 3, "coalesced": 1}


def test_a_caller_who_took_over_and_gives_up_frees_the_place(colour_models: Path, backend: ColourBackend) -> None:
    with (
        serving(colour_models, backend, cache_bytes=MEBIBYTE) as client,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        occupied = occupy(client, backend, threads)
        first = threads.submit(classify, client, timeout_ms=2000)
        eventually(lambda: looked_up(client)["miss"] == 2)
        second = threads.submit(classify, client, timeout_ms=4000)
        assert (first.result().status_code, second.result().status_code) == (504, 504)
        assert looked_up(client) == {"hit": 0, "miss": 3, "coalesced": 1}
        assert "classify_queue_depth 0.0" in client.get("/metrics").text
        backend.free.set()
        assert occupied.result().status_code == 200


def test_a_failure_is_not_kept(colour_models: Path, backend: ColourBackend) -> None:
    with serving(colour_models, backend, cache_bytes=MEBIBYTE) as client:
        backend.error = ValueError("broken")
        assert classify(client).status_code == 500
        backend.error = None
        assert classify(client).status_code == 200
        bad = client.post("/classify", content=b"no image")
        assert bad.json()["code"] == "undecodable_image"


def test_a_batch_asks_only_for_what_is_not_known(colour_models: Path, backend: ColourBackend) -> None:
    with serving(colour_models, backend, cache_bytes=MEBIBYTE) as client:
        classify(client, "red")
        files = [("files", encode(colour)) for colour in ("red", "green", "green", "blue")]
        results = client.post("/classify/batch", files=files).json()["results"]
        assert [each["predictions"][0]["label"] for each in results] == ["red", "green", "green", "blue"]
        assert looked_up(client) == {"hit": 1, "miss": 3, "coalesced": 1}


def test_an_explanation_is_computed_anew(digits_models: Path, samples: list[Path]) -> None:
    from service.app import create_app
    from service.settings import read_settings
    from tests.service.client import wait_until_ready

    with TestClient(create_app(read_settings({"models": digits_models, "cache_bytes": MEBIBYTE}))) as client:
        wait_until_ready(client)
        body = samples[0].read_bytes()
        plain = client.post("/classify", content=body).json()
        explained = client.post("/classify", params={"explain": "cam"}, content=body).json()
        assert explained["predictions"] == plain["predictions"]
        assert "explanation" in explained


def test_the_bytes_are_bounded_and_the_least_recently_asked_for_goes_first(
    colour_models: Path, backend: ColourBackend
) -> None:
    with serving(colour_models, backend, cache_bytes=900) as client:  # two entries of 412 bytes
        for colour in COLOURS:
            classify(client, colour)
        assert "classify_cache_bytes 824.0" in client.get("/metrics").text
        classify(client, "blue")
        classify(client, "green")
        assert looked_up(client)["hit"] == 2
        classify(client, "red")
        assert looked_up(client)["miss"] == 4

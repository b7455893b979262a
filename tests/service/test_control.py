"""Models come, change, fail and go while the service runs: over HTTP, with a colour model in each file."""

import concurrent.futures
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.artifact import ArtifactError
from service.opening import Opener
from service.settings import SettingsError, read_settings
from tests.backends import ColourBackend, colour_card
from tests.service.client import encode
from tests.waiting import PATIENCE, eventually


class Colours:
    """Opens a file as a colour model of its own; a file that says so cannot be opened."""

    def __init__(self) -> None:
        self.opened: list[tuple[Path, ColourBackend]] = []

    def open(self, path: Path) -> ColourBackend:
        if path.read_text() == "broken":
            raise ArtifactError("it is broken")
        backend = ColourBackend(colour_card(path.parent.parent.name))
        self.opened.append((path, backend))
        return backend

    def last(self, name: str, version: int) -> ColourBackend:
        return next(backend for path, backend in reversed(self.opened) if path.parts[-3:-1] == (name, str(version)))


def publish(models: Path, name: str, version: int, content: str = "") -> None:
    """Put a model file into its place in one step, as the exporter does."""
    folder = models / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "new").write_text(content)
    (folder / "new").rename(folder / "model.onnx")


@contextmanager
def controlled(models: Path, mode: str, colours: Colours | None = None, **settings: object) -> Iterator[TestClient]:
    options = {"models": models, "model_control": mode, "model_poll_ms": 20, **settings}
    app = create_app(read_settings(options), Opener((colours or Colours()).open))
    with TestClient(app) as client:
        starting = ("loading", "golden", "warmup")
        eventually(lambda: not client.get("/health/ready").json()["phase"].startswith(starting))
        yield client


def classify(client: TestClient, headers: dict[str, str] | None = None, **query: object) -> Any:
    return client.post("/classify", params=query, content=encode("red"), headers=headers)  # type: ignore[arg-type]


def versions(client: TestClient, name: str = "colours") -> list[int]:
    answer = client.get(f"/models/{name}")
    return [each["version"] for each in answer.json()["versions"] if each["state"] == "ready"] if answer else []


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "colours", 1)
    return tmp_path / "models"


def test_polling_takes_a_new_version_into_service_and_frees_one_that_is_gone(models: Path) -> None:
    colours = Colours()
    with controlled(models, "poll", colours) as client:
        assert classify(client).json()["version"] == 1
        publish(models, "colours", 2)
        eventually(lambda: classify(client).json()["version"] == 2)
        assert classify(client, version=1).json()["version"] == 1
        shutil.rmtree(models / "colours" / "2")
        eventually(lambda: classify(client).json()["version"] == 1)  # rollback is the same operation
        assert versions(client) == [1]
        eventually(lambda: colours.last("colours", 2).closed)
        assert classify(client, version=2).json()["code"] == "unknown_model"
        assert 'model_info{architecture="mean",device="cpu",model="colours",precision="fp32",version="2"}' not in (
            client.get("/metrics").text
        )


def test_polling_replaces_a_version_whose_file_has_changed(models: Path) -> None:
    colours = Colours()
    with controlled(models, "poll", colours) as client:
        publish(models, "colours", 1, "another")
        eventually(lambda: len(colours.opened) == 2)
        eventually(lambda: colours.opened[0][1].closed)
        assert classify(client).status_code == 200
        assert not colours.opened[1][1].closed


def test_a_version_may_be_a_time(models: Path) -> None:
    publish(models, "colours", 1_796_016_566_123)
    with controlled(models, "none", canary="colours:1796016566123:50%") as client:
        assert classify(client, version=1).json()["version"] == 1
        assert classify(client, version=1_796_016_566_123).json()["version"] == 1_796_016_566_123
        assert client.get("/v2/models/colours/versions/1796016566123/ready").status_code == 200
        assert versions(client) == [1_796_016_566_123, 1]


def test_a_file_of_aliases_that_cannot_be_written_is_said(models: Path) -> None:
    with controlled(models, "explicit") as client:
        (models / "colours" / "aliases.json").mkdir()
        refused = client.put("/models/colours/aliases/stable", json={"version": 1})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
        assert "aliases.json cannot be written, so no alias moves: Is a directory" in refused.json()["detail"]


def test_a_load_that_fails_leaves_the_version_in_service_and_says_so(models: Path) -> None:
    with controlled(models, "poll") as client:
        publish(models, "colours", 1, "broken")
        publish(models, "colours", 2, "broken")
        eventually(
            lambda: (
                'model_load_failures_total{model="colours",reason="other",version="2"} 1.0'
                in client.get("/metrics").text
            )
        )
        eventually(
            lambda: (
                'model_load_failures_total{model="colours",reason="other",version="1"} 1.0'
                in client.get("/metrics").text
            )
        )
        assert classify(client).json()["version"] == 1
        assert client.get("/health/ready").status_code == 200
        second, first = client.get("/models/colours").json()["versions"]
        assert (first["state"], first["reason"]) == ("ready", "it is broken")
        assert (second["state"], second["reason"]) == ("failed", "it is broken")
        index = client.post("/v2/repository/index").json()
        assert [(each["version"], each["state"], each["reason"]) for each in index] == [
            ("1", "READY", "it is broken"),
            ("2", "UNAVAILABLE", "it is broken"),
        ]
        assert classify(client, version=2).json()["code"] == "model_unavailable"
        publish(models, "colours", 2, "mended")
        eventually(lambda: classify(client).json()["version"] == 2)


def test_another_model_that_fails_to_load_is_no_choice_that_callers_have(models: Path) -> None:
    with controlled(models, "poll") as client:
        publish(models, "other", 1, "broken")
        eventually(lambda: "it is broken" in client.get("/models").text)
        assert classify(client).json()["model"] == "colours"
        assert classify(client, model="other").json()["code"] == "model_unavailable"
        publish(models, "other", 1, "mended")
        eventually(lambda: versions(client, "other") == [1])
        assert classify(client).json()["code"] == "invalid_parameter"


def test_a_folder_that_is_gone_for_a_moment_takes_no_model_with_it(models: Path) -> None:
    with controlled(models, "poll") as client:
        models.rename(models.with_name("elsewhere"))
        time.sleep(0.1)
        assert classify(client).status_code == 200
        assert versions(client) == [1]


def test_a_service_that_follows_its_folder_may_start_without_a_model(tmp_path: Path) -> None:
    with controlled(tmp_path / "models", "poll") as client:
        assert client.get("/health/ready").json()["phase"] == "empty"
        assert classify(client).json()["code"] == "model_unavailable"
        publish(tmp_path / "models", "colours", 1)
        eventually(lambda: client.get("/health/ready").status_code == 200)
        assert classify(client).json()["version"] == 1


def test_load_and_unload_by_request(models: Path) -> None:
    colours = Colours()
    with controlled(models, "explicit", colours) as client:
        publish(models, "colours", 2)
        assert classify(client).json()["version"] == 1
        assert client.post("/v2/repository/models/colours/load").status_code == 200
        assert classify(client).json()["version"] == 2
        body = {"parameters": {"version": 2}}
        assert client.post("/v2/repository/models/colours/unload", json=body).status_code == 200
        assert colours.last("colours", 2).closed
        assert classify(client).json()["version"] == 1
        index = client.post("/v2/repository/index").json()
        assert [(each["version"], each["state"], each["reason"]) for each in index] == [
            ("1", "READY", ""),
            ("2", "UNAVAILABLE", "unloaded"),
        ]
        assert [each["version"] for each in client.post("/v2/repository/index", json={"ready": True}).json()] == ["1"]
        assert client.post("/v2/repository/index", json={"ready": "perhaps"}).status_code == 400
        assert client.post("/v2/repository/models/colours/unload").status_code == 200
        assert client.get("/health/ready").json()["phase"] == "empty"
        assert client.post("/v2/repository/models/colours/load").status_code == 200
        assert versions(client) == [2, 1]
        assert {each["state"] for each in client.post("/v2/repository/index").json()} == {"READY"}
        assert client.get("/health/ready").status_code == 200
        assert client.post("/v2/repository/models/colours/unload", json=body).status_code == 200
        shutil.rmtree(models / "colours" / "2")
        assert client.post("/v2/repository/models/colours/load", json=body).status_code == 404
        assert len(client.post("/v2/repository/index", content=b" ").json()) == 1


def test_what_cannot_be_loaded_is_an_error_of_the_protocol(models: Path) -> None:
    with controlled(models, "explicit") as client:
        publish(models, "colours", 2, "broken")
        failed = client.post("/v2/repository/models/colours/load")
        assert (failed.status_code, failed.json()["error"]) == (
            400,
            "failed to load colours version 2: it is broken",
        )
        for action in ("load", "unload"):
            assert client.post(f"/v2/repository/models/nothing/{action}").status_code == 404
        foreign = client.post("/v2/repository/models/colours/load", json={"parameters": {"config": "{}"}})
        assert foreign.status_code == 400
        assert versions(client) == [1]


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_only_explicit_control_takes_requests(mode: str, models: Path) -> None:
    with controlled(models, mode) as client:
        for action in ("load", "unload"):
            refused = client.post(f"/v2/repository/models/colours/{action}")
            assert refused.status_code == 400
            assert mode in refused.json()["error"]
        refused = client.put("/models/colours/aliases/stable", json={"version": 1})
        assert refused.json()["code"] == "invalid_request"


def test_an_alias_moves_only_to_a_version_in_service_and_is_there_after_a_restart(models: Path) -> None:
    publish(models, "colours", 2)
    with controlled(models, "explicit") as client:
        assert classify(client).json()["version"] == 2
        assert client.put("/models/colours/aliases/stable", json={"version": 1}).json()["aliases"] == {"stable": 1}
        assert classify(client).json()["version"] == 1
        assert classify(client, version="stable").json()["version"] == 1
        refused = client.put("/models/colours/aliases/stable", json={"version": 9})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")
        assert classify(client).json()["version"] == 1
        assert client.put("/models/nothing/aliases/stable", json={"version": 1}).status_code == 404
        assert classify(client, version="canary").json()["code"] == "unknown_model"
    with controlled(models, "explicit") as client:
        assert classify(client).json()["version"] == 1
        assert client.delete("/models/colours/aliases/stable").json()["aliases"] == {}
        assert classify(client).json()["version"] == 2


def test_an_alias_in_the_folder_waits_for_its_version(models: Path) -> None:
    aliases = models / "colours" / "aliases.json"
    aliases.write_text('{"stable": 1}')
    with controlled(models, "poll") as client:
        aliases.write_text('{"stable": 2}')
        publish(models, "colours", 3)
        eventually(lambda: versions(client) == [3, 1])
        assert classify(client).json()["version"] == 1
        publish(models, "colours", 2)
        eventually(lambda: classify(client).json()["version"] == 2)
        aliases.write_text("no json")
        time.sleep(0.1)
        assert classify(client).json()["version"] == 2
        folder = models / "colours" / "folder"
        folder.symlink_to(models)
        folder.replace(aliases)  # at once: without the file there would be no alias
        time.sleep(0.1)
        assert classify(client).json()["version"] == 2
        publish(models, "colours", 4)
        eventually(lambda: versions(client) == [4, 3, 2, 1])
    with controlled(models, "none") as client:
        assert client.get("/health/ready").json()["phase"] == "ready"


def test_a_version_answers_what_it_has_before_it_goes(models: Path) -> None:
    colours = Colours()
    publish(models, "colours", 2)
    with controlled(models, "explicit", colours) as client, concurrent.futures.ThreadPoolExecutor(2) as threads:
        old = colours.last("colours", 2)
        old.hold()
        running = threads.submit(classify, client)
        assert old.busy.wait(PATIENCE)
        second = {"parameters": {"version": 2}}
        unloading = threads.submit(client.post, "/v2/repository/models/colours/unload", json=second)
        eventually(lambda: versions(client) == [1])
        assert classify(client).json()["version"] == 1
        assert not old.closed
        assert not unloading.done()
        old.free.set()
        assert running.result().json()["version"] == 2
        assert unloading.result().status_code == 200
        assert old.closed


def test_a_canary_gets_its_share_and_a_caller_stays_on_its_side(models: Path) -> None:
    publish(models, "colours", 2)
    (models / "colours" / "aliases.json").write_text(json.dumps({"stable": 1}))
    with controlled(models, "none", canary="colours:2:25%") as client:
        keys = [f"caller-{number}" for number in range(200)]
        first = [classify(client, {"x-canary-key": key}).json()["version"] for key in keys]
        again = [classify(client, {"x-canary-key": key}).json()["version"] for key in keys]
        by_id = [classify(client, {"x-request-id": key}).json()["version"] for key in keys]
        assert first == again == by_id
        assert 0.15 < first.count(2) / len(first) < 0.35
        assert classify(client, {"x-canary-key": keys[first.index(2)]}, version=1).json()["version"] == 1


def test_a_canary_that_is_not_in_service_takes_no_request(models: Path) -> None:
    with controlled(models, "none", canary="colours:2:100%") as client:
        assert classify(client).json()["version"] == 1


@pytest.mark.parametrize("text", ["digits", "digits:2", "digits:2:0%", "digits:2:101%", "digits:x:5%", "a:1:5%,a:2:5%"])
def test_a_canary_that_makes_no_sense_stops_the_start(text: str) -> None:
    with pytest.raises(SettingsError, match="SERVICE_CANARY"):
        read_settings({"canary": text})


def test_keys_guard_all_but_probes_and_metrics(models: Path) -> None:
    with controlled(models, "explicit", api_keys="first, second") as client:
        for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/"):
            assert client.get(path).status_code == 200
        refused = classify(client)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.post("/v2/repository/models/colours/load").json() == {"error": refused.json()["detail"]}
        assert client.get("/models").status_code == 401
        for headers in ({"authorization": "Bearer second"}, {"x-api-key": "first"}):
            assert classify(client, headers).status_code == 200
            assert client.post("/v2/repository/models/colours/load", headers=headers).status_code == 200
        assert classify(client, {"x-api-key": "third"}).status_code == 401


def test_a_bad_priority_is_named_and_a_good_one_is_taken(models: Path) -> None:
    with controlled(models, "none") as client:
        refused = classify(client, {"x-priority": "urgent"})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")
        assert "x-priority" in refused.json()["detail"]
        assert classify(client, {"x-priority": "low"}).status_code == 200


def test_low_priority_is_shed_for_high_over_http(models: Path) -> None:
    colours = Colours()
    with (
        controlled(models, "none", colours, max_queue=1, max_request_images=1) as client,
        concurrent.futures.ThreadPoolExecutor(3) as threads,
    ):
        backend = colours.last("colours", 1)
        backend.hold()
        running = threads.submit(classify, client)
        assert backend.busy.wait(PATIENCE)
        low = threads.submit(classify, client, {"x-priority": "low"})
        eventually(lambda: "classify_queue_depth 1.0" in client.get("/metrics").text)
        high = threads.submit(classify, client, {"x-priority": "high"})
        assert low.result().status_code == 429
        assert int(low.result().headers["retry-after"]) >= 1
        backend.free.set()
        assert [running.result().status_code, high.result().status_code] == [200, 200]


def test_many_loads_and_unloads_at_once_end_in_order(models: Path) -> None:
    colours = Colours()
    publish(models, "colours", 2)
    with controlled(models, "explicit", colours) as client, concurrent.futures.ThreadPoolExecutor(8) as threads:
        actions = [("load", "unload")[number % 2] for number in range(40)]
        barrier = threading.Barrier(8)

        def act(action: str) -> int:
            if not barrier.broken:
                barrier.wait(PATIENCE)
            return client.post(f"/v2/repository/models/colours/{action}").status_code

        assert set(threads.map(act, actions)) <= {200, 404}
        assert client.post("/v2/repository/models/colours/load").status_code == 200
        assert classify(client).json()["version"] == 2
        assert sum(not backend.closed for _, backend in colours.opened) == 2

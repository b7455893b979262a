"""API keys: scopes, rotation without a restart, limits, an audit trail, and no key in any log line."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.access import KeyFileError, Keys, new_key
from tests.service.client import encode, serving
from tests.system.server import run_command
from tests.waiting import eventually

IMAGE = {"content-type": "image/png"}


def line(name: str, scopes: str, key: str) -> str:
    return f"{name} {scopes} sha256:{sha256(key.encode()).hexdigest()}\n"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def classify(client: TestClient, key: str) -> int:
    return client.post("/classify", content=encode("red"), headers=IMAGE | bearer(key)).status_code


@contextmanager
def guarded(models: Path, lines: str, **more: object) -> Iterator[TestClient]:
    file = models.parent / "keys"
    file.write_text(lines)
    settings: dict[str, Any] = {"api_keys_file": file, "model_control": "explicit", **more}
    with serving(models, **settings) as client:
        yield client


def test_a_key_opens_what_its_scopes_say(colour_models: Path) -> None:
    lines = "# who may ask\n\n" + line("shop", "classify", "shop-key") + line("ops", "admin,classify", "ops-key")
    with guarded(colour_models, lines) as client:
        assert classify(client, "shop-key") == classify(client, "ops-key") == 200
        assert classify(client, "other") == 401
        load = "/v2/repository/models/colours/load"
        assert client.post(load, headers=bearer("other")).status_code == 401
        refused = client.post(load, headers=bearer("shop-key"))
        assert refused.status_code == 403
        assert refused.json() == {"error": "This key may classify and not control models."}
        assert client.post(load, headers=bearer("ops-key")).status_code == 200
        alias = "/models/colours/aliases/stable"
        assert client.put(alias, json={"version": 1}, headers=bearer("shop-key")).json()["code"] == "forbidden"
        assert client.put(alias, json={"version": 1}, headers=bearer("ops-key")).status_code == 200
        assert client.delete(alias, headers=bearer("shop-key")).status_code == 403


def test_keys_are_rotated_without_a_restart_and_a_broken_file_locks_nobody_out(
    colour_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = colour_models.parent / "keys"
    with guarded(colour_models, line("shop", "classify", "old")) as client:

        def becomes(key: str, status: int) -> None:
            eventually(lambda: classify(client, key) == status)

        file.write_text(line("shop", "classify", "old") + line("shop", "classify", "new"))
        becomes("new", 200)
        assert classify(client, "old") == 200
        file.write_text(line("shop", "classify", "new"))
        becomes("old", 401)
        file.write_text("nonsense\n")
        time.sleep(1.2)
        assert classify(client, "new") == 200
        file.unlink()
        time.sleep(1.2)
        assert classify(client, "new") == 200
    assert any("the keys stay as they were" in record.message for record in caplog.records)


class Clock:
    """`time`, for those who ask how often they were asked."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.access.time", clock)
    return clock


def test_a_key_that_asks_too_often_gets_429_and_the_others_do_not(colour_models: Path, clock: Clock) -> None:
    lines = line("busy", "classify", "busy-key") + line("calm", "classify", "calm-key")
    with guarded(colour_models, lines, rate_limit=2) as client:
        answers = [
            client.post("/classify", content=encode("red"), headers=IMAGE | bearer("busy-key")) for _ in range(4)
        ]
        assert [each.status_code for each in answers] == [200, 200, 429, 429]
        assert answers[-1].json()["code"] == "rate_limited"
        assert answers[-1].headers["retry-after"] == "1"
        assert classify(client, "calm-key") == 200
        clock.now += 0.5
        assert [classify(client, "busy-key") for _ in range(2)] == [200, 429]


def test_each_administration_is_written_down_and_no_key_ever_is(
    colour_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with guarded(
        colour_models,
        line("ops", "admin", "ops-secret") + line("shop", "classify", "shop-secret"),
        api_keys="given-secret",
    ) as client:
        unload = "/v2/repository/models/colours/unload"
        client.post(unload, headers=bearer("wrong-secret") | {"x-request-id": "none"})
        client.post(unload, headers=bearer("shop-secret") | {"x-request-id": "one"})
        client.post(unload, headers=bearer("ops-secret") | {"x-request-id": "two"})
        client.post(unload, headers={"x-api-key": "given-secret", "x-request-id": "three"})
    trail = [record for record in caplog.records if record.name == "service.audit"]
    fields = [{name: record.__dict__["fields"][name] for name in ("request_id", "key", "outcome")} for record in trail]
    assert fields.pop(0) == {"request_id": "none", "key": "?", "outcome": "unauthorized"}
    assert trail.pop(0).getMessage().startswith(f"'POST {unload}' by ? from ")
    assert fields == [
        {"request_id": "one", "key": "shop", "outcome": "forbidden"},
        {"request_id": "two", "key": "ops", "outcome": "done"},
        {"request_id": "three", "key": "key-1", "outcome": "unknown_model"},
    ]
    assert all("unload colours" in record.getMessage() for record in trail)
    assert "secret" not in caplog.text
    assert not any("secret" in str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize(
    "sent",
    [
        bearer("wrong") | {"x-api-key": "right"},
        bearer("right") | {"x-api-key": "wrong"},
        {"authorization": "Basic cmlnaHQ=", "x-api-key": "right"},
        {"x-api-key": "grün".encode()},
        {"x-api-key": "€".encode()},
    ],
)
def test_one_key_that_matches_is_enough(colour_models: Path, sent: dict[str, Any]) -> None:
    with serving(colour_models, api_keys="right,grün,€") as client:
        assert client.post("/classify", content=encode("red"), headers=IMAGE | sent).status_code == 200
        assert client.post("/classify", content=encode("red"), headers=IMAGE | {"x-api-key": ""}).status_code == 401


def test_of_two_keys_the_one_that_opens_more_counts(colour_models: Path) -> None:
    with guarded(
        colour_models, line("shop", "classify", "shop-key") + line("ops", "admin,classify", "ops-key")
    ) as client:
        load = "/v2/repository/models/colours/load"
        for headers in (bearer("shop-key") | {"x-api-key": "ops-key"}, bearer("ops-key") | {"x-api-key": "shop-key"}):
            assert client.post(load, headers=headers).status_code == 200


def test_an_administrator_who_asks_too_often_is_written_down_by_name(
    colour_models: Path, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    with guarded(colour_models, line("ops", "admin", "ops-key"), rate_limit=1) as client:
        load = "/v2/repository/models/a%0Ab/load"
        assert [client.post(load, headers=bearer("ops-key")).status_code for _ in range(2)] == [404, 429]
    last = [record for record in caplog.records if record.name == "service.audit"][-1]
    assert last.getMessage().startswith(r"'POST /v2/repository/models/a\nb/load' by ops from ")
    assert last.__dict__["fields"]["outcome"] == "rate_limited"


def test_a_key_may_be_given_as_its_digest(colour_models: Path) -> None:
    with serving(colour_models, api_keys=f"sha256:{sha256(b'key').hexdigest()}") as client:
        assert classify(client, "key") == 200
        assert classify(client, sha256(b"key").hexdigest()) == 401


def test_a_made_key_fits_its_line(tmp_path: Path) -> None:
    key, text = new_key()
    (tmp_path / "keys").write_text(text.replace("NAME", "somebody"))
    assert Keys("", tmp_path / "keys").check(bearer(key)).name == "somebody"


@pytest.mark.parametrize(
    ("text", "complaint"),
    {
        "no line of a key": ("hello", "line 1 is not"),
        "an unknown scope": (line("x", "root", "k"), "scopes are admin and classify, not root"),
        "a short digest": ("x classify sha256:abcd", "line 1 is not"),
    }.values(),
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(KeyFileError, match=complaint):
        Keys("", tmp_path / "keys")


def test_the_command_makes_a_key_and_a_bad_file_stops_the_start_with_one_line(tmp_path: Path) -> None:
    made = run_command("key")
    assert made.returncode == 0
    assert re.search(r"^NAME classify sha256:[0-9a-f]{64}$", made.stdout, re.MULTILINE)
    missing = run_command("--api-keys-file", str(tmp_path / "missing"))
    assert missing.returncode == 1
    assert missing.stderr.startswith("resnet-serve: the keys in ")
    assert missing.stderr.count("\n") == 1
    without = run_command("--rate-limit", "5")
    assert without.returncode == 2
    assert "there are no keys" in without.stderr

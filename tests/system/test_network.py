"""What happens below the requests: certificates, ports, and callers who do not finish their headers."""

import datetime
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.connection import CLOSING_SECONDS
from tests.system.server import Server, free_port, run_command, running, wait_until_ready
from tests.system.wire import UPGRADE, answers, connected, form_request, is_closed, request
from tests.waiting import eventually

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


def certify(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for a name, and its key, over those that were there."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    certificate = (
        builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    ).sign(key, hashes.SHA256())
    chain, private = folder / "chain.pem", folder / "key.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return chain, private


def shown_name(server: Server) -> str:
    """The name in the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", server.port)) as plain, context.wrap_socket(plain) as connection:
        shown = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    return str(shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_https_takes_a_renewed_certificate_and_keeps_the_old_one_when_the_new_is_broken(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    chain, key = certify(tmp_path, "first")
    flags = ("--tls-cert", str(chain), "--tls-key", str(key))
    with (
        running(digits_models, *flags, scheme="https") as server,
        httpx2.Client(base_url=server.url, verify=False, timeout=30) as kept,
    ):
        assert kept.post("/classify", content=samples[0].read_bytes()).status_code == 200
        assert shown_name(server) == "first"
        chain.write_text("half a certificate")
        time.sleep(1.5)
        assert shown_name(server) == "first"
        certify(tmp_path, "second")
        eventually(lambda: shown_name(server) == "second")
        assert kept.post("/classify", content=samples[0].read_bytes()).status_code == 200
        with pytest.raises(httpx2.TransportError):
            httpx2.get(server.url.replace("https", "http") + "/health/live")
        assert server.get("/health/live").status_code == 200
        kept.close()
        assert server.terminate() == 0


@pytest.mark.faults
def test_a_caller_who_does_not_say_goodbye_holds_a_stop_up_for_no_longer_than_is_allowed(
    digits_models: Path, tmp_path: Path
) -> None:
    chain, key = certify(tmp_path, "name")
    flags = ("--tls-cert", str(chain), "--tls-key", str(key), "--drain-delay-ms", "0")
    with running(digits_models, *flags, scheme="https") as server:
        context = ssl._create_unverified_context()
        with socket.create_connection(("127.0.0.1", server.port)) as plain, context.wrap_socket(plain) as connection:
            connection.sendall(REQUEST + b"\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            assert server.terminate() == 0
            assert time.monotonic() - began < CLOSING_SECONDS + 3


def test_a_certificate_that_cannot_be_used_stops_the_start_with_one_line(digits_models: Path, tmp_path: Path) -> None:
    chain, key = certify(tmp_path, "first")
    other = tmp_path / "other"
    other.mkdir()
    _, wrong = certify(other, "other")
    for flags in (
        ("--tls-cert", str(chain), "--tls-key", str(wrong)),
        ("--tls-cert", str(tmp_path / "missing"), "--tls-key", str(key)),
    ):
        done = run_command("--models", str(digits_models), *flags)
        assert done.returncode == 1
        assert done.stderr.startswith("resnet-serve: the certificate ")
        assert done.stderr.count("\n") == 1
    assert run_command("--tls-cert", str(chain)).returncode == 2


def test_administration_has_a_port_of_its_own_if_one_is_set(digits_models: Path, samples: list[Path]) -> None:
    admin = free_port()
    with running(digits_models, "--admin-port", str(admin), "--model-control", "explicit") as server:
        elsewhere = Server(server.process, f"http://127.0.0.1:{admin}", server.log)
        assert server.get("/metrics").status_code == 404
        assert elsewhere.get("/metrics").status_code == 200
        load = "/v2/repository/models/digits/load"
        assert server.post(load).status_code == 404
        assert server.put("/models/digits/aliases/stable", json={"version": 1}).status_code == 404
        assert elsewhere.post(load).status_code == 200
        for each in (server, elsewhere):
            assert each.get("/health/ready").status_code == 200
        assert server.post("/classify", content=samples[0].read_bytes()).status_code == 200
        assert server.terminate() == 0


@pytest.fixture(scope="module")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models) as server:
        yield server


def test_what_is_no_http_gets_a_problem_and_is_cut(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'"code":"malformed_request"' in answer
    found = re.search(rb"\r\nx-request-id: (\w+)\r\nserver-timing: total;dur=[0-9.]+\r\n", answer)
    assert found is not None
    eventually(lambda: found[1].decode() in server.log.read_text())


@pytest.mark.parametrize(
    "sent",
    [
        request,
        lambda body: form_request(("file", body)),
        lambda body: form_request(("files", body)).replace(b"/classify", b"/classify/batch", 1),
    ],
    ids=["image", "form", "batch"],
)
def test_the_body_of_a_request_that_wishes_for_http_2_is_no_request(
    server: Server, sent: Callable[..., bytes], samples: list[Path]
) -> None:
    for body in (samples[0].read_bytes(), b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n"):
        plain = sent(body)
        wishing = plain.replace(b"\r\n", "\r\n".join(["", *UPGRADE, ""]).encode(), 1)
        with connected(server) as connection:
            found = []
            for each in (plain, wishing):
                head = each.index(b"\r\n\r\n") + 4
                for part in (each[:head], each[head:]):
                    connection.sendall(part)
                    time.sleep(0.02)
                found += [(status, answer) for status, _, answer in answers(connection, 1)]
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            ((status, _, answer),) = answers(connection, 1)
        assert found[0] == found[1]
        assert (status, b'"live"' in answer) == (200, True)
    assert "upgrade" not in server.log.read_text().lower()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("asked", ["Upgrade", "close, Upgrade", "Upgrade, keep-alive"])
def test_a_wish_for_another_protocol_on_a_connection_that_ends_is_answered_at_once(
    server: Server, version: str, asked: str, samples: list[Path]
) -> None:
    image = samples[0].read_bytes()
    wish = (f"Connection: {asked}", "Upgrade: h2c")
    for sent in (
        request(image, *wish),
        b"\r\n".join([b"GET /models HTTP/1.1", b"Host: x", *map(str.encode, wish), b"", b""]),
    ):
        with connected(server) as connection:
            connection.settimeout(5)
            connection.sendall(sent.replace(b" HTTP/1.1", f" HTTP/{version}".encode(), 1))
            ((status, _, _),) = answers(connection, 1)
            assert status == 200
            assert "close" not in asked or is_closed(connection)


def test_garbage_behind_a_request_takes_nothing_from_its_answer(server: Server, samples: list[Path]) -> None:
    image = samples[0].read_bytes()
    documented = request(image, target="/classify?explain=cam")
    for sent in (request(image), documented, request(image) * 2, documented + request(image)):
        with connected(server) as connection:
            connection.sendall(sent + b"\x00\x01 garbage\r\n\r\n" * 3)
            found = answers(connection, sent.count(b"POST "))
            assert {status for status, _, _ in found} == {200}
            assert is_closed(connection)


def test_chunks_that_are_no_http_behind_a_request_hold_nothing_up(server: Server, samples: list[Path]) -> None:
    broken = request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"zz\r\n"
    with connected(server) as connection:
        connection.sendall(request(samples[0].read_bytes(), target="/classify?explain=cam") + broken)
        assert [status for status, _, _ in answers(connection, 1)] == [200]
        assert is_closed(connection)


def test_a_body_whose_chunks_are_no_http_gets_a_problem(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"zz\r\n")
        ((status, headers, body),) = answers(connection, 1)
        assert (status, b'"malformed_request"' in body, headers["connection"]) == (400, True, "close")
        assert is_closed(connection)
    assert not server.tracebacks()


def test_the_server_is_no_proxy(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\nGET /models HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_flood_of_headers_is_cut_and_costs_no_memory(server: Server) -> None:
    before = server.resident_bytes()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(REQUEST)
        sent = 0
        try:
            while sent < 2**26:
                sent += connection.send(b"X-Flood: " + b"x" * 4000 + b"\r\n")
        except ConnectionError:
            pass
        assert sent < 2**23
    assert server.resident_bytes() - before < 2**24
    wait_until_ready(server)


@pytest.mark.faults
def test_headers_that_do_not_end_are_cut_after_the_stated_time_and_whole_ones_are_not(server: Server) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=15) as slow,
        socket.create_connection(("127.0.0.1", server.port), timeout=15) as second,
        httpx2.Client(base_url=server.url) as honest,
    ):
        second.sendall(REQUEST + b"\r\n")
        ((status, _, _),) = answers(second, 1)
        assert status == 200
        slow.sendall(REQUEST)
        second.sendall(REQUEST)  # the second request of a connection is bounded as the first
        started = time.monotonic()
        while time.monotonic() < started + 7:
            assert honest.get("/health/live").status_code == 200
            slow.sendall(b"x")
            time.sleep(0.5)
        for connection in (slow, second):
            answer = connection.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert b'"code":"request_timeout"' in answer
        assert 9 < time.monotonic() - started < 12
        assert honest.get("/health/live").status_code == 200

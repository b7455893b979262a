"""Bodies that no honest client sends, against a real server: the contract's code, quickly, and in little memory."""

import contextlib
import itertools
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.system.server import Server, running
from tests.system.wire import connected, request, tensor_request

MEBIBYTE = 2**20
JPEG_SIDE_OFFSET = 5


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    """A real JPEG whose frame header claims another size."""
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="JPEG")
    whole = bytearray(buffer.getvalue())
    frame = whole.index(b"\xff\xc0") + JPEG_SIDE_OFFSET
    whole[frame : frame + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def gif_header(width: int, height: int) -> bytes:
    """A GIF that claims a size and ends after its screen descriptor and one empty frame."""
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame + b"\x02\x02\x44\x01\x00\x3b"


def webp_header(width: int, height: int) -> bytes:
    """A WebP whose canvas claims a size, with no image in it."""
    canvas = struct.pack("<B3x", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def frames(form: str) -> bytes:
    """A thousand frames of which only the first is decoded."""
    first, *others = [Image.new("RGB", (64, 64), (number % 256, 0, 0)) for number in range(1000)]
    buffer = BytesIO()
    first.save(buffer, format=form, save_all=True, append_images=others)
    return buffer.getvalue()


def in_format(form: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format=form)
    return buffer.getvalue()


def cut_jpeg() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((500, 375), 60).convert("RGB").save(buffer, format="JPEG")
    return buffer.getvalue()[:-5000]


def stream(size: int) -> Iterator[bytes]:
    for _ in range(size // MEBIBYTE):
        yield b"\xff" * MEBIBYTE


@pytest.fixture(scope="module")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models) as server:
        yield server


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "empty_body"),
        (b"hello", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"hello", {"content-type": "image/jpeg"}, 400, "undecodable_image"),
        (cut_jpeg(), {"content-type": "image/jpeg"}, 400, "undecodable_image"),
        (png_header(30_000, 30_000), {"content-type": "image/png"}, 413, "image_too_large"),
        (jpeg_header(30_000, 30_000), {"content-type": "image/jpeg"}, 413, "image_too_large"),
        (gif_header(30_000, 30_000), {"content-type": "image/gif"}, 413, "image_too_large"),
        (webp_header(16_000, 16_000), {"content-type": "image/webp"}, 400, "undecodable_image"),
        (in_format("TIFF"), {"content-type": "image/jpeg"}, 400, "undecodable_image"),
        (in_format("BMP"), {"content-type": "image/jpeg"}, 400, "undecodable_image"),
        (in_format("ICO"), {"content-type": "image/png"}, 400, "undecodable_image"),
        (b"8BPS\0\1" + bytes(60), {"content-type": "image/jpeg"}, 400, "undecodable_image"),
        (b"\xff" * 60 * MEBIBYTE, {"content-type": "image/jpeg"}, 413, "body_too_large"),
        (None, {"content-type": "image/jpeg"}, 413, "body_too_large"),
    ],
    ids=[
        "empty",
        "text",
        "text as jpeg",
        "cut jpeg",
        "huge png",
        "huge jpeg",
        "huge gif",
        "huge webp",
        "tiff",
        "bmp",
        "ico",
        "psd",
        "60 MiB",
        "60 MiB, no length",
    ],
)
def test_each_gets_its_code_quickly_and_costs_no_memory(
    body: bytes | None, headers: dict[str, str], status: int, code: str, server: Server, samples: list[Path]
) -> None:
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        client.post("/classify", content=samples[0].read_bytes())
        before = server.resident_bytes()
        seconds = []
        for _ in range(3):  # the machine may be busy for one of them
            started = time.monotonic()
            content = stream(60 * MEBIBYTE) if body is None else body
            response = client.post("/classify", content=content, headers=headers)
            seconds.append(time.monotonic() - started)
            assert (response.status_code, response.json()["code"]) == (status, code)
        assert min(seconds) < 1
        assert server.resident_bytes() - before < 50 * MEBIBYTE
        assert client.post("/classify", content=samples[0].read_bytes()).status_code == 200


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_a_thousand_frames_the_first_is_classified_in_time(form: str, server: Server) -> None:
    content = frames(form)
    answers = [server.post("/classify", content=content) for _ in range(3)]  # the machine may be busy for one of them
    assert [each.status_code for each in answers] == [200] * 3
    decoding = [each.headers["server-timing"].split("decode;dur=")[1].split(",")[0] for each in answers]
    assert min(float(each) for each in decoding) < 1000


def test_many_large_bodies_that_are_no_images_do_not_pile_up(server: Server) -> None:
    """Errors and their frames once held each other, and the body with them, until the collector came by."""
    body = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0\x08\2\0\0\0" + os.urandom(5 * MEBIBYTE)
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        assert client.post("/classify", content=body).status_code == 400
        before = peak = server.resident_bytes()
        for _ in range(100):
            client.post("/classify", content=body)
            peak = max(peak, server.resident_bytes())
    assert peak - before < 100 * MEBIBYTE


def test_a_60_mebibyte_form_costs_no_memory_either(server: Server, samples: list[Path]) -> None:
    before = server.resident_bytes()
    files = [("files", ("big.jpg", b"\xff" * 60 * MEBIBYTE))]
    response = server.post("/classify/batch", files=files, timeout=30)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert server.resident_bytes() - before < 50 * MEBIBYTE


def test_a_sender_without_end_is_cut_off_after_its_answer(server: Server) -> None:
    port = server.port
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head)
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer
        with contextlib.suppress(ConnectionError):
            while sent < 2**31:
                sent += connection.send(b"x" * MEBIBYTE)
    assert sent < 400 * MEBIBYTE


def test_a_caller_who_sends_several_requests_and_resets_the_connection_fails_nothing(
    server: Server, image: bytes
) -> None:
    pipelined = [
        request(image, target="/classify?explain=cam"),
        request(image, target="/classify?version=1"),
        request(image),
        tensor_request(),
        b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    for first, second in list(itertools.product(pipelined, pipelined)) * 4:
        with connected(server) as connection:
            connection.sendall(first + second + first)
            time.sleep(0.001)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.post("/classify", content=image).status_code == 200
    assert not server.tracebacks()
    assert 'code="500"' not in server.get("/metrics").text

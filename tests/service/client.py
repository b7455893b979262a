"""The application over a colour backend, as an HTTP client sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from fastapi.testclient import TestClient
from PIL import Image

from service.app import create_app
from service.opening import Opener
from service.settings import read_settings
from tests.backends import ColourBackend
from tests.waiting import eventually

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def encode(colour: str, form: str = "PNG", size: int = 8) -> bytes:
    """An image of one colour."""
    buffer = BytesIO()
    Image.new("RGB", (size, size), COLOURS[colour]).save(buffer, format=form)
    return buffer.getvalue()


@contextmanager
def serving(models: Path, backend: ColourBackend | None = None, **settings: object) -> Iterator[TestClient]:
    """A ready service; its settings are the defaults but for those given."""
    app = create_app(read_settings({"models": models, **settings}), Opener((backend or ColourBackend()).open))
    with TestClient(app) as client:
        wait_until_ready(client)
        yield client


def wait_until_ready(client: TestClient) -> None:
    """Poll /health/ready as a load balancer would."""
    eventually(lambda: client.get("/health/ready").status_code == 200, pause=0.01)

"""Hub sources through the ecosystem's own clients, against a local stand-in of the hubs' file layout."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from model_export import hubs, recipes
from model_export.checkpoints import Given, read_checkpoint
from model_export.cli import main
from model_export.errors import ExportError
from model_export.verify import card_of
from tests.model_export.networks import hollow, trained_like
from tests.model_export.test_checkpoints import write_hugging_face, write_timm


class Hub(ThreadingHTTPServer):
    """Serves a folder as Hugging Face's hub and torchvision's download site lay out their files."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        file = self.server.root / self.path.lstrip("/").replace("resolve/main/", "")
        body = file.read_bytes() if file.is_file() else b""
        self.send_response(200 if file.is_file() else 404)
        if not file.is_file():
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on standard error."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    with Hub(tmp_path / "hub") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client in this process as a new one with HF_ENDPOINT and HF_HOME would have it."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))


def export(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: the hub's client reads its environment when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "model_export", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | environment,
        check=False,
    )


def test_a_hugging_face_repository_is_fetched_and_converted(
    hub: Hub, client: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    write_hugging_face(hub.root / "owner" / "net", size=64, **config)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
    command = ["convert", "hf:owner/net", "--name", "net", "--out", str(tmp_path / "models")]
    result = export(*command, **environment)
    assert result.returncode == 0, result.stderr
    assert "GET /owner/net/resolve/main/model.safetensors" in hub.asked
    card = card_of(tmp_path / "models/net/1/model.onnx")
    assert card.source is not None
    assert (card.source.format, card.architecture) == ("hugging face", "resnet18")
    hub.asked.clear()
    few = tmp_path / "labels.txt"
    few.write_text("one\ntwo\n")
    # Refused once the checkpoint is read, which is all that the cache is asked for.
    assert main([*command, "--labels", str(few)]) == 1
    assert "2 labels" in capsys.readouterr().err
    assert hub.asked
    assert not [each for each in hub.asked if each.startswith("GET") and "safetensors" in each], (
        "the cache was not used"
    )


@pytest.mark.usefixtures("client")
def test_a_timm_model_is_fetched_under_timms_name(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "timm").mkdir()
    weights = dict(trained_like("resnet18", 1000).state_dict())
    write_timm(hub.root / "timm" / "resnet18.a1_in1k", "resnet18", weights, size=64)
    assert main(["convert", "timm:resnet18.a1_in1k", "--name", "net", "--out", str(tmp_path / "models")]) == 0
    assert "GET /timm/resnet18.a1_in1k/resolve/main/model.safetensors" in hub.asked
    assert (tmp_path / "models/net/1/model.onnx").is_file()


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("source", "name"), [("hf:owner/absent", "owner/absent"), ("timm:absent.tag", "timm/absent.tag")]
)
def test_a_repository_that_is_not_there_is_one_line(
    source: str, name: str, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", source, "--name", "net", "--out", str(tmp_path / "models")]) == 1
    error = capfd.readouterr().err
    assert error.splitlines()[-1].startswith("resnet-export: ")
    assert "Traceback" not in error
    assert any(f" /{name}/" in each for each in hub.asked)


def test_offline_it_says_what_to_fetch_by_hand(tmp_path: Path) -> None:
    result = export(
        *["convert", "hf:owner/net", "--name", "net", "--out", str(tmp_path / "models")],
        **{"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "fetch config.json, preprocessor_config.json and model.safetensors by hand" in result.stderr


@pytest.fixture
def torchvision(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stand-in for torchvision's resnet18 on the download site; returns its digest."""
    made = hub.root / "made.pth"
    torch.save(hollow("resnet18", 1000), made)
    digest = hashlib.sha256(made.read_bytes()).hexdigest()[:8]
    made.rename(hub.root / f"resnet18-{digest}.pth")
    monkeypatch.setattr(hubs, "TORCHVISION_URL", hub.url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for module in (hubs, recipes):
        monkeypatch.setattr(module, "TORCHVISION", {digest: ("resnet18", "IMAGENET1K_V1", "imagenet-v1")})
    return digest


@pytest.mark.parametrize("weights", ["", "@DEFAULT", "@IMAGENET1K_V1"])
def test_torchvision_weights_are_fetched_once_and_checked(weights: str, torchvision: str, hub: Hub) -> None:
    for _ in range(2):
        checkpoint = read_checkpoint(f"torchvision:resnet18{weights}", Given())
        assert checkpoint.architecture.name == "resnet18"
        assert (checkpoint.source.format, len(checkpoint.labels)) == ("torchvision", 1000)
    assert hub.asked == [f"GET /resnet18-{torchvision}.pth"]


def test_a_download_with_another_hash_is_refused(torchvision: str, hub: Hub) -> None:
    file = hub.root / f"resnet18-{torchvision}.pth"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ExportError, match="not the file it should be"):
        read_checkpoint("torchvision:resnet18", Given())


def test_a_cached_file_that_was_damaged_is_refused(torchvision: str, hub: Hub) -> None:
    read_checkpoint("torchvision:resnet18", Given())
    cached = Path(torch.hub.get_dir()) / "checkpoints" / f"resnet18-{torchvision}.pth"
    cached.write_bytes(b"damaged")
    with pytest.raises(ExportError, match="remove it and try again"):
        read_checkpoint("torchvision:resnet18", Given())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("torchvision:resnext50", "choose one of resnet18"),
        ("torchvision:resnet50@V9", "IMAGENET1K_V1 or IMAGENET1K_V2"),
        ("hf:not/a/name", "OWNER/NAME"),
    ],
)
def test_a_hub_source_that_means_nothing_is_refused_with_the_choice(
    source: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", source, "--name", "net"]) == 1
    assert said in capsys.readouterr().err


def test_an_unreachable_download_site_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(hubs, "TORCHVISION_URL", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match="fetch it by hand"):
        read_checkpoint("torchvision:resnet50", Given())

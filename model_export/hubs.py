"""SOURCE -> a local file or folder: what ships in the package, and the ecosystem's hubs through their own clients.

Downloads show progress, are checked against the hub's hash, and are kept in the clients' own caches
(`TORCH_HOME`, `HF_HOME`).
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from urllib.error import URLError

import httpx2
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from model_export.errors import ExportError
from model_export.files import CONFIG, PROCESSOR, WEIGHT_FILES
from model_export.recipes import TORCHVISION

BUILTIN = "builtin:"
# Where torchvision.models' weight enumerations point.
TORCHVISION_URL = "https://download.pytorch.org/models"


def builtin_names() -> list[str]:
    """The checkpoints that ship in the package."""
    return sorted(each.name for each in (files("model_export") / "builtin").iterdir() if each.is_dir())


def locate(source: str) -> Path:
    """The local file or folder of a SOURCE, downloaded first where that is needed.

    Raises:
        ExportError: there is no such thing, or the hub cannot be reached; says what to fetch by hand.
    """
    scheme, _, name = source.partition(":")
    if scheme == "builtin":
        return _builtin(name)
    if scheme == "torchvision":
        return _torchvision(name)
    if scheme == "hf":
        return _hugging_face(name)
    if scheme == "timm":
        return _hugging_face(f"timm/{name}")
    return Path(source)


def _builtin(name: str) -> Path:
    if name not in builtin_names():
        raise ExportError(
            f"unknown checkpoint {BUILTIN}{name}: there is {', '.join(map(BUILTIN.__add__, builtin_names()))}"
        )
    return Path(str(files("model_export") / "builtin" / name / "model.safetensors"))


def _torchvision(name: str) -> Path:
    architecture, _, weights = name.partition("@")
    # torchvision's DEFAULT is the newest.
    known = {version: digest for digest, (each, version, _) in TORCHVISION.items() if each == architecture}
    if not known:
        names = ", ".join(dict.fromkeys(each for each, _, _ in TORCHVISION.values()))
        raise ExportError(f"torchvision:{architecture} cannot be converted: choose one of {names}")
    version = max(known) if weights in ("", "DEFAULT") else weights
    if version not in known:
        raise ExportError(f"torchvision has no weights {weights} for {architecture}: choose {' or '.join(known)}")
    return _download(f"{architecture}-{known[version]}.pth", known[version])


def _download(file_name: str, digest: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    url = f"{TORCHVISION_URL}/{file_name}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=True)
        except (URLError, OSError) as error:
            raise ExportError(
                f"cannot download {url} ({error}): fetch it by hand and give the file as SOURCE"
            ) from error
        except RuntimeError as error:  # the hash differs
            raise ExportError(f"{url} is not the file it should be: {error}") from error
    _check_digest(path, digest)
    return path


def _hugging_face(repository: str) -> Path:
    """Fetch configuration and weights of a repository; returns the folder of the client's cache that holds them."""
    try:
        folder = Path(hf_hub_download(repository, CONFIG)).parent
        _optional(repository, PROCESSOR)
        if not any(_optional(repository, name) for name in WEIGHT_FILES):
            raise ExportError(f"{repository} on the hub has no {' or '.join(WEIGHT_FILES)}")
        return folder
    except HFValidationError as error:
        raise ExportError(f"{repository} is no name of a repository: give OWNER/NAME") from error
    except RemoteEntryNotFoundError as error:
        raise ExportError(f"{repository} on the hub has no {CONFIG}: it is no model that can be converted") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"cannot download {repository} from the hub ({reason}): fetch {CONFIG}, {PROCESSOR} and {WEIGHT_FILES[0]} "
            "by hand into a folder and give that as SOURCE"
        ) from error


def _optional(repository: str, name: str) -> bool:
    try:
        path = Path(hf_hub_download(repository, name))
    except RemoteEntryNotFoundError:
        return False
    _check_against_hub(repository, name, path)
    return True


def _check_against_hub(repository: str, name: str, path: Path) -> None:
    """Large files are named by their sha256 on the hub; offline, the cache has been checked when it was filled."""
    try:
        etag = get_hf_file_metadata(hf_hub_url(repository, name)).etag
    except (httpx2.HTTPError, HfHubHTTPError, OSError):
        return
    if etag and len(etag) == 64:
        _check_digest(path, etag)


def _check_digest(path: Path, digest: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digest):
        raise ExportError(f"{path} is damaged (sha256 {found[:8]}… instead of {digest[:8]}…): remove it and try again")

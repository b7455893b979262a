"""Who vouches for a model file: a detached Ed25519 signature beside it, by one of the signers that are trusted here.

`model.onnx.sig` has the 64 bytes that OpenSSL writes, over the file as it is:

    openssl pkeyutl -sign -inkey signer.pem -rawin -in model.onnx -out model.onnx.sig

The seal finds damage; a signature also finds somebody who sealed anew.
"""

import mmap
import re
from pathlib import Path

from service.artifact import ArtifactError
from service.errors import StartError

SUFFIX = ".sig"
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class SignersError(StartError):
    """The trusted signers cannot be read. The message is one line that says why and what to do."""


class Signers:
    """The public keys whose signatures are trusted."""

    def __init__(self, path: Path) -> None:
        """Read a PEM file with one public Ed25519 key or more.

        Raises:
            SignersError: it cannot be read, or holds none; or cryptography is not installed.
        """
        try:
            from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  an extra
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
            from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
        except ImportError as error:
            raise SignersError("SERVICE_MODEL_SIGNERS needs cryptography: install resnet-service[signing]") from error
        try:
            keys = [load_pem_public_key(pem) for pem in _PEM.findall(path.read_bytes())]
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise SignersError(f"the signers in {path} cannot be read: {error}") from error
        self._keys: list[Ed25519PublicKey] = [key for key in keys if isinstance(key, Ed25519PublicKey)]
        if not self._keys or len(self._keys) < len(keys):
            raise SignersError(f"{path} must hold public Ed25519 keys in PEM, and nothing else")

    def check(self, path: Path) -> None:
        """Let a model file past that one of the signers has signed.

        Raises:
            ArtifactError: there is no signature, or it is nobody's who is trusted here.
            OSError: the file cannot be read.
        """
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  an extra

        beside = path.with_name(path.name + SUFFIX)
        try:
            signature = beside.read_bytes()
        except FileNotFoundError as error:
            raise ArtifactError(f"it is not signed: there is no {beside.name} beside it") from error
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as content,
        ):
            for key in self._keys:
                try:
                    key.verify(signature, content)
                except InvalidSignature:
                    continue
                return
        raise ArtifactError(f"its signature ({beside.name}) is none of a signer that is trusted here")

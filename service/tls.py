"""The certificate of HTTPS, read again when its files change: certificates are renewed every few weeks."""

import logging
import ssl
from pathlib import Path

from service.errors import StartError
from service.watched import Watched

log = logging.getLogger(__name__)


class CertificateError(StartError):
    """The certificate cannot be used. The message is one line that says why."""


class Certificate:
    """A context for uvicorn whose certificate changes under the connections; each keeps the one it began with."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Read PEM files.

        Raises:
            CertificateError: they are missing, damaged, or do not belong together.
        """
        self._files = chain, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._watched = Watched(chain, key)
        self._load()

    def look(self) -> None:
        """Take over files that were changed; a pair that cannot be used changes nothing."""
        if not self._watched.changed():
            return
        try:
            self._load()
        except CertificateError as error:
            log.error("%s; the one in use stays", error)
        else:
            log.info("certificate read again")

    def _load(self) -> None:
        chain, key = self._files
        try:
            # In a context of its own first: half a renewed pair would leave the one in use without its key.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, password=_no_password)
            self.context.load_cert_chain(chain, key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateError(f"the certificate {chain} with the key {key} cannot be used: {error}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted")

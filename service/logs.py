"""Log lines on standard output, as JSON or text; one for each classification request."""

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

TEXT = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"


def configure_logging(log_format: Literal["json", "text"], level: str) -> None:
    """Send every log record of this process, uvicorn's included, through one handler."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_json() if log_format == "json" else logging.Formatter(TEXT, defaults={"request_id": "-"}))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Its start and stop messages repeat what the lifecycle logs.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _json() -> logging.Formatter:
    return JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
    )

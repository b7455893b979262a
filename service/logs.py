"""Log lines on standard output, as JSON or text; one for each classification request."""

import logging
import sys
import threading
import time
from typing import Any, Literal, TextIO

import orjson

TEXT = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"
# Longest time that a line stays in the process; less would cost more, and nobody reads along that fast.
FLUSH_SECONDS = 0.05
# What any formatter may ask of a record.
_BLANK = logging.LogRecord("", logging.NOTSET, "", 0, "", None, None).__dict__


class FieldsRecord(logging.LogRecord):
    """A record with fields beside its message, made without looking for caller, thread and process.

    That takes logging longer than all else that is done for a request's line.
    """

    def __init__(self, name: str, level: int, message: str, fields: dict[str, Any]) -> None:
        now = time.time()
        self.__dict__ = _BLANK | {
            "name": name,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
            "created": now,
            "msecs": now % 1 * 1000,
            "request_id": fields.get("request_id", "-"),
            "fields": fields,
        }


def with_fields(**fields: Any) -> dict[str, Any]:
    """`extra` for a logger's methods: the fields of a line, and its request id where text is written."""
    return {"fields": fields, "request_id": fields.get("request_id", "-")}


def configure_logging(log_format: Literal["json", "text"], level: str) -> None:
    """Send every log record of this process, uvicorn's included, through one handler."""
    handler = _StandardOutput()
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else logging.Formatter(TEXT, defaults={"request_id": "-"})
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Its start and stop messages repeat what the lifecycle logs.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class _StandardOutput(logging.StreamHandler[TextIO]):
    """Writes what is merely informative with the next line that matters, or after FLUSH_SECONDS.

    To write each request's line by itself costs as much as to make it.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self._due = threading.Event()
        threading.Thread(target=self._flush_when_due, name="log flush", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; `logging` holds the handler's lock."""
        try:
            self.stream.write(self.format(record) + self.terminator)
            if record.levelno > logging.INFO or self.stream.isatty():
                self.flush()
            elif not self._due.is_set():
                self._due.set()
        except Exception:
            self.handleError(record)

    def _flush_when_due(self) -> None:
        while self._due.wait():
            time.sleep(FLUSH_SECONDS)
            self._due.clear()  # before the flush, or a line written meanwhile would wait for the next one
            self.flush()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()

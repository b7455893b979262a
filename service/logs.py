"""Log lines on standard output, as JSON or text; one for each classification request."""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TextIO

import orjson

log = logging.getLogger(__name__)

TEXT = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"
# Longest time that a line stays in the process; less would cost more, and nobody reads along that fast.
FLUSH_SECONDS = 0.05
LogFormat = Literal["json", "text"]
# Characters that a pipe takes in one piece if they are ASCII (PIPE_BUF is 4,096 bytes on Linux).
PIECE = 4000
# Lines that are kept for a reader who is behind.
MOST_LINES = 10_000
# What any formatter may ask of a record.
_BLANK = logging.LogRecord("", logging.NOTSET, "", 0, "", None, None).__dict__


class FieldsRecord(logging.LogRecord):
    """A record with fields beside its message, which are asked for when the line is written, after the request.

    It is made without looking for caller, thread and process: that takes logging longer than all else that is done for
    a request's line.
    """

    _describe: Callable[[], tuple[str, dict[str, Any]]]

    def __init__(self, name: str, level: int, describe: Callable[[], tuple[str, dict[str, Any]]]) -> None:
        now = time.time()
        self.__dict__ = _BLANK | {
            "name": name,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "created": now,
            "msecs": now % 1 * 1000,
            "_describe": describe,
        }

    def getMessage(self) -> str:  # noqa: N802  logging names it
        """The message; every formatter asks for it first."""
        message, self.fields = self._describe()
        self.request_id = self.fields.get("request_id", "-")
        return message


def with_fields(**fields: Any) -> dict[str, Any]:
    """`extra` for a logger's methods: the fields of a line, and its request id where text is written."""
    return {"fields": fields, "request_id": fields.get("request_id", "-")}


def configure_logging(log_format: LogFormat, level: str) -> None:
    """Send every log record of this process, uvicorn's included, through one handler."""
    handler = _StandardOutput()
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else logging.Formatter(TEXT, defaults={"request_id": "-"})
    )
    own = logging.getLevelNamesMapping()[level.upper()]
    # What libraries say for debugging is left out: Pillow's lines have what is written in an image.
    logging.basicConfig(handlers=[handler], level=max(own, logging.INFO), force=True)
    logging.getLogger("service").setLevel(own)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Its start and stop messages repeat what the lifecycle logs.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class _StandardOutput(logging.StreamHandler[TextIO]):
    """Writes what is merely informative with the next line that matters, or after FLUSH_SECONDS.

    To make and write each request's line by itself costs twice as much. Whole lines are written, in pieces that a pipe
    takes as one: worker processes write to the same one.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self._records: deque[logging.LogRecord] = deque()
        self._dropped = 0
        self._writing = threading.RLock()
        self._is_writing = False
        self._due = threading.Event()
        threading.Thread(target=self._flush_when_due, name="log flush", daemon=True).start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Keep a record to be written, without the handler's lock: whoever writes may log as well, if only because the
        collection of garbage finds something to complain of."""
        accepted = bool(self.filter(record))
        if accepted:
            self.emit(record)
        return accepted

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record to be written, unless MOST_LINES wait already for whoever reads."""
        if len(self._records) >= MOST_LINES:
            self._dropped += 1
            return
        self._records.append(record)
        if record.levelno > logging.INFO or self.stream.isatty():
            self.flush()
        elif not self._due.is_set():
            self._due.set()

    def flush(self) -> None:
        """Write what there is."""
        with self._writing:
            if self._is_writing:  # this thread, which comes to the new record as well
                return
            self._is_writing = True
            try:
                self._write_all()
            finally:
                self._is_writing = False

    def _write_all(self) -> None:
        piece = ""
        while self._records:
            line = self._line(self._records.popleft())
            if len(piece) + len(line) > PIECE:
                self._write(piece)
                piece = ""
            piece += line
        self._write(piece)
        dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("%d lines were dropped, as nobody read them", dropped)

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + self.terminator
        except Exception:
            self.handleError(record)
            return ""

    def _write(self, piece: str) -> None:
        try:
            self.stream.write(piece)
            self.stream.flush()
        except BrokenPipeError:  # whoever read is gone, and the service goes on
            return
        except Exception:
            self.handleError(logging.makeLogRecord({}))

    def _flush_when_due(self) -> None:
        while self._due.wait():
            time.sleep(FLUSH_SECONDS)
            self._due.clear()  # before the flush, or a line written meanwhile would wait for the next one
            self.flush()


def flush_within(seconds: float) -> None:
    """Write what there is, unless that takes longer; from wherever, also a signal's handler."""
    writing = threading.Thread(target=_flush, daemon=True)
    writing.start()
    writing.join(seconds)


def _flush() -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": f"{_to_the_second(int(record.created))},{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


@lru_cache(2)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))

"""Logs of `fs serve` on standard error: lines for people, or one JSON object a line.

Neither holds a feature value, an entity key or a secret. The text of an exception may quote any of these, so logs name
only its type and the place where it was raised.
"""

from __future__ import annotations

import json
import logging
import traceback
from time import monotonic
from typing import Any, Literal

from featurestore.tables import visible
from featurestore.types.times import to_rfc3339

Format = Literal["text", "json"]

SLOW_SECONDS = 1.0
"""Log requests that take longer; the others only with ``--debug``."""

TELL_AGAIN_SECONDS = 1.0
"""Log a kind of failure that thousands of requests meet at most this often."""

logger = logging.getLogger("featurestore.server")
_told: dict[str, float] = {}


def configure(form: Format, *, debug: bool) -> None:
    """Send logs to standard error unless the program has already said where they go."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("featurestore").setLevel(logging.DEBUG if debug else logging.INFO)
    # uvicorn logs a warning for every request that it refuses.
    logging.getLogger("uvicorn.error").addFilter(lambda line: line.levelno != logging.WARNING or is_news(str(line.msg)))


def log_request(
    method: str, route: str, status: int, seconds: float, request_id: str, *, pause_seconds: float = 0.0
) -> None:
    """Log one request; ``route`` is one of ours, never the path as it was sent.

    ``pause_seconds`` is how long it may have waited on purpose: that does not make it slow.
    """
    level = logging.WARNING if seconds >= SLOW_SECONDS + pause_seconds else logging.DEBUG
    if logger.isEnabledFor(level):
        text = "request %s: %s %s %d in %.1f ms"
        extra = {"request_id": request_id}
        logger.log(level, text, request_id, method, route, status, seconds * 1000, extra=extra)


def is_news(kind: str) -> bool:
    """Tell whether a kind of failure was not logged for a while: an outage must not fill the disk."""
    now = monotonic()
    if now - _told.get(kind, -TELL_AGAIN_SECONDS) < TELL_AGAIN_SECONDS:
        return False
    _told[kind] = now
    return True


class Lines(logging.Formatter):
    """Formats records as text; an exception follows its line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and those of the exception."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {visible(said(record))}"
        return f"{line}\n{exception_text(record.exc_info[1])}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message"}`` and, if there are any, ``request_id`` and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one object on one line."""
        line: dict[str, Any] = {
            "time": to_rfc3339(int(record.created * 1_000_000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": said(record),
        }
        if hasattr(record, "request_id"):
            line["request_id"] = record.request_id
        if record.exc_info:
            line["exception"] = exception_text(record.exc_info[1])
        return json.dumps(line)


def said(record: logging.LogRecord) -> str:
    """Return a record's message; only the beginning of asyncio's, which quote arguments and exceptions."""
    message = record.getMessage()
    return " ".join(message.split()[:3]) if record.name == "asyncio" else message


def exception_text(error: BaseException | None) -> str:
    """Return the frames and types of an exception and its causes, newest first, without their messages."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # An on-demand function's own frames are kept apart from ours.
        own = getattr(error, "details", {}).get("traceback", "")
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"{frames}{own}{type(error).__module__}.{type(error).__qualname__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nwhich came from\n\n".join(parts)

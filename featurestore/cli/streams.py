"""Standard output and error in any encoding: characters that it lacks are written in ASCII instead of failing."""

from __future__ import annotations

import codecs
import errno
import os
import sys

_PLAIN = {
    "→": "->",
    "…": "...",
    "–": "-",
    "—": "-",
    "─": "-",
    "│": "|",
    "├": "|",
    "└": "`",
    "•": "*",
    "≥": ">=",
    "≤": "<=",
}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace our own signs by ASCII; escape everything else, lone surrogates included, as Python and JSON do."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or ascii(each)[1:-1] for each in lacking), error.end


codecs.register_error("featurestore.plainly", _plainly)


def write_anything() -> None:
    """Let both streams take every text."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="featurestore.plainly")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_output_lost(error: OSError) -> bool:
    """Tell whether an error is that standard output, or standard error, cannot be written: what else comes is lost."""
    is_lost = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # At exit Python would try to flush what is left in the buffer, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            is_lost = True
    # Without a buffer (PYTHONUNBUFFERED) nothing is left. A full disk in a store raises an error of the store's own.
    return is_lost or (error.filename is None and error.errno in _NO_ROOM)


def is_unicode(stream: object) -> bool:
    """Tell whether a stream takes every character as it is."""
    return str(getattr(stream, "encoding", None)).lower().startswith("utf")

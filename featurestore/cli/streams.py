"""Standard output and error in any encoding: characters that it lacks are written in ASCII instead of failing."""

from __future__ import annotations

import codecs
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


def is_unicode(stream: object) -> bool:
    """Tell whether a stream takes every character as it is."""
    return str(getattr(stream, "encoding", None)).lower().startswith("utf")

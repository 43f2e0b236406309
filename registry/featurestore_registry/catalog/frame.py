"""The frame of every page: templates that escape, the address of each page, and the files that pages load."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from featurestore_registry.catalog import drawing, words
from featurestore_registry.catalog.activity import LABELS
from featurestore_registry.catalog.addresses import address, project_address
from featurestore_registry.catalog.findings import BADGES
from featurestore_registry.catalog.navigation import nav_links

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "referrer-policy": "same-origin",  # with no-referrer browsers would send no Origin along with the form
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "private, no-store",
}
"""Of every page. No style attributes: the policy blocks them."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page shows: a template and its values."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Static:
    """A file that pages load."""

    content: bytes
    media_type: str
    digest: str


@cache
def static_files() -> Mapping[str, Static]:
    """Return the files by name: there are no others to ask for."""
    found = {}
    for path in (_HERE / "static").iterdir():
        if path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.name] = Static(content, _TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:16])
    return found


def static_url(name: str) -> str:
    """Return the address of a file; it changes with the file, so caches may keep it for ever."""
    return f"/static/{name}?v={static_files()[name].digest}"


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=words.seen,
    )
    made.globals.update(static=static_url, address=address, at=project_address)
    names = ("age", "ago", "brief", "counted", "duration", "instant", "kind_name", "number", "rule", "share", "took")
    made.filters.update({name: getattr(words, name) for name in names})
    made.filters.update(us=words.to_us, pretty=_pretty, dedent=_dedented)
    made.filters.update(value=drawing.value, short=drawing.short, of_nulls=words.of_nulls)
    made.globals.update(labels=LABELS, looks=BADGES, nav_links=nav_links)
    return made


def _pretty(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, default=str)


def _dedented(text: Any) -> str:
    return textwrap.dedent(str(text).strip("\n").expandtabs()).rstrip()


def render(page: Page, **more: Any) -> bytes:
    """Return a page as HTML."""
    text = _environment().get_template(page.template).render(**{**more, **page.values})
    return text.encode("utf-8", "replace")


def message(title: str, *paragraphs: str, link: tuple[str, str] | None = None, status: int = 200) -> Page:
    """Return a page that only says something, and perhaps links to what to do."""
    return Page("message.html", {"heading": title, "paragraphs": paragraphs, "link": link}, status)

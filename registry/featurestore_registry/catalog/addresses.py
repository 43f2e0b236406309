"""The address of each page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode


def address(*segments: str, **query: Any) -> str:
    """Return the address of a page: names may hold anything, and values that are empty are left out."""
    path = "/".join(quote(segment, safe="") for segment in segments)
    told = urlencode({name: value for name, value in query.items() if value not in (None, "", False, [])}, doseq=True)
    return f"/{path}{'?' if told else ''}{told}"


def project_address(project: str, *segments: str, **query: Any) -> str:
    """Return the address of a project's page."""
    return address("p", project, *segments, **query)

"""``/docs``: Swagger UI, served completely from an installed package."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

DOCS_PATH = "/docs"
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
# Relative addresses, so that the page works behind a proxy that adds a prefix.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# Swagger UI sets style attributes and draws its icons from data: addresses.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}


class Asset(NamedTuple):
    """A file of the page."""

    content: bytes
    media_type: str


@cache
def assets() -> dict[str, Asset]:
    """Return the page's files by name."""
    # Found without an import, which would only wrap FastAPI again.
    spec = find_spec("fastapi_offline")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "static"
    return {
        "swagger-ui-bundle.js": Asset((folder / "swagger-ui-bundle.js").read_bytes(), "text/javascript"),
        "swagger-ui.css": Asset((folder / "swagger-ui.css").read_bytes(), "text/css"),
        "start.js": Asset(_START.encode(), "text/javascript"),
    }


def add_docs(app: FastAPI) -> None:
    """Add the page and its files to an app."""

    async def page(request: Request) -> Response:
        return HTMLResponse(_PAGE.format(title=app.title), headers=_HEADERS)

    def serve(asset_name: str) -> None:
        async def file(request: Request) -> Response:
            asset = assets()[asset_name]
            return Response(asset.content, media_type=asset.media_type, headers=_HEADERS)

        app.add_route(f"{DOCS_PATH}/{asset_name}", file, include_in_schema=False)

    app.add_route(DOCS_PATH, page, include_in_schema=False)
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js"):
        serve(name)

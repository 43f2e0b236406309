"""``/docs``: Swagger UI, served completely from an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

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


def add_docs(app: FastAPI) -> None:
    """Add the page and its files to an app."""
    spec = find_spec("fastapi_offline")  # without an import, which would only wrap FastAPI again
    assert spec is not None
    assert spec.origin is not None
    answers: dict[str, Response] = {
        DOCS_PATH: HTMLResponse(_PAGE.format(title=app.title), headers=_HEADERS),
        f"{DOCS_PATH}/start.js": Response(_START, headers=_HEADERS, media_type="text/javascript"),
    }
    # Read once: an upgrade may replace the files under a server. The host's table of types may be wrong.
    for name, kind in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        content = (Path(spec.origin).parent / "static" / name).read_bytes()
        answers[f"{DOCS_PATH}/{name}"] = Response(content, headers=_HEADERS, media_type=kind)
    app.router.routes += [
        Route(path, answer, methods=["GET"], include_in_schema=False) for path, answer in answers.items()
    ]

"""How Sphinx builds the documentation: ``make docs``. The pages are Markdown; nothing is imported from the code."""

from __future__ import annotations

project = "featurestore"
author = "The featurestore authors"
copyright = "2026, the featurestore authors"  # noqa: A001 - Sphinx's name
language = "en"

extensions = ["myst_parser"]
exclude_patterns: list[str] = []
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = "featurestore"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["reference/wire-format-vectors.json"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

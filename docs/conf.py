"""How Sphinx builds the documentation: ``make docs``. The pages are Markdown; docstrings are reStructuredText."""

from __future__ import annotations

import gc
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import desc_signature
from sphinx.application import Sphinx

gc.disable()  # the build makes many nodes and ends: looking for garbage among them took a fifth of its time

project = "featurestore"
author = "The featurestore authors"
copyright = "2026, the featurestore authors"  # noqa: A001 - Sphinx's name
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns: list[str] = []
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
smartquotes = False  # it makes one dash of the two in --json, and quotes that no shell takes

default_role = "literal"  # of `names` in docstrings
autodoc_default_options = {"members": True, "exclude-members": "model_config, from_dict, from_document, joined"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
nitpick_ignore_regex = [  # types in signatures that have no entry to link to: others', aliases, our inner ones
    ("py:class", r"(?!featurestore).*"),
    ("py:class", r"featurestore_registry\..*|featurestore\.(offline|project|registered|types)\..*"),
    ("py:class", r"featurestore\.(workspace\.Workspace|client\.OnlineResponse)"),
    ("py:class", r"featurestore\.definitions\.(base\.Definition|events\.EventColumns|aggregation\.Window)"),
    ("py:class", r"featurestore\.(plan\.\w+\.Loss)"),
]

html_theme = "furo"
html_title = "featurestore"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["reference/wire-format-vectors.json"]
html_copy_source = False
html_use_index = False  # the theme links to none
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def setup(app: Sphinx) -> None:
    """Say what the extensions have no setting for."""
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("object-description-transform", leave_out_of_contents)


def hide_constructor(app: Sphinx, what: str, name: str, *_: Any) -> tuple[str, None] | None:
    """Show the constructors of classes that users make objects of: results are made for them."""
    made_by_users = name.count(".") == 1 or name.endswith(".FeatureClient")
    return None if what != "class" or made_by_users else ("", None)


def leave_out_of_contents(app: Sphinx, domain: str, kind: str, content: Element) -> None:
    """Keep attributes out of the page's contents, which are part of every page's navigation."""
    if kind in ("attribute", "property"):
        for signature in content.parent.findall(desc_signature):
            signature["_toc_name"] = ""
